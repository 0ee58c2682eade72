// What token endpoints say, by table: standard answers, answers that say no with 200, and answers that say nothing.
import { expect, test } from "vitest";
import { EgressError } from "#libs/egress-error.ts";
import { judgeTokenAnswer, judgeTokenFailure } from "../../services/vault/token-answers.ts";

const granted = (grant: object) => ({ kind: "granted", grant });
const retry = (error: string, more: object = {}) => ({ kind: "retry", error, sent: true, ...more });

test.each([
  ["a token alone", 200, { access_token: "a" }, granted({ accessToken: "a" })],
  [
    "a whole grant",
    200,
    { access_token: "a", refresh_token: "r", expires_in: 60, scope: "x y" },
    granted({ accessToken: "a", refreshToken: "r", lifetimeSeconds: 60, scopes: ["x", "y"] }),
  ],
  ["a life as text", 200, { access_token: "a", expires_in: "60" }, granted({ accessToken: "a", lifetimeSeconds: 60 })],
  ["a life that is none", 200, { access_token: "a", expires_in: "soon" }, granted({ accessToken: "a" })],
  [
    "an endless life",
    200,
    { access_token: "a", expires_in: 1e300 },
    granted({ accessToken: "a", lifetimeSeconds: 31_536_000 }),
  ],
  ["a life of nothing", 200, { access_token: "a", expires_in: 0 }, granted({ accessToken: "a" })],
  ["a life below nothing", 200, { access_token: "a", expires_in: -5 }, granted({ accessToken: "a" })],
  ["a token beside an empty error", 200, { access_token: "a", error: "" }, granted({ accessToken: "a" })],
  [
    "scopes with what is no text",
    200,
    { access_token: "a", scope: "x \0 y\0" },
    granted({ accessToken: "a", scopes: ["x"] }),
  ],
  ["a list", 200, [{ access_token: "a" }], { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" }],
  ["a number for a token", 200, { access_token: 7 }, { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" }],
  ["a text", 200, "access_token=a", { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" }],
  [
    "a type that must be signed with",
    200,
    { access_token: "a", token_type: "mac" },
    { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" },
  ],
  ["a type in capitals", 200, { access_token: "a", token_type: "BEARER" }, granted({ accessToken: "a" })],
  [
    "a token with a line's end",
    200,
    { access_token: "a\r\nx-evil: 1" },
    { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" },
  ],
  ["an empty token", 200, { access_token: "" }, { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" }],
  ["200 without JSON", 200, undefined, { kind: "unknown", error: "NO_TOKEN_IN_ANSWER" }],
  ["invalid_grant", 400, { error: "invalid_grant" }, { kind: "rejected", error: "invalid_grant" }],
  ["invalid_grant with 200", 200, { error: "invalid_grant" }, { kind: "rejected", error: "invalid_grant" }],
  ["invalid_client", 401, { error: "invalid_client" }, { kind: "client_rejected", error: "invalid_client" }],
  ["401 without a word", 401, undefined, { kind: "client_rejected", error: "HTTP_401" }],
  ["400 without a word", 400, {}, retry("HTTP_400")],
  ["403 from a gateway", 403, "<html>", retry("HTTP_403")],
  ["a redirect", 302, undefined, retry("HTTP_302")],
  ["an outage", 503, undefined, retry("HTTP_503")],
  ["an unknown error", 400, { error: "slow_down" }, retry("slow_down")],
  ["an error that echoes a token of small letters", 400, { error: "5up3r53cr3t" }, retry("unnamed_error")],
  ["an error that echoes something", 400, { error: "ya29.Token" }, retry("unnamed_error")],
])("judges %s", (_name, status, body, outcome) => {
  expect(judgeTokenAnswer(status, body)).toEqual(outcome);
});

test("passes on for how long the provider wants to be left alone, and splits scopes as the app does", () => {
  expect(judgeTokenAnswer(429, {}, { retryAfter: "30" })).toEqual(retry("HTTP_429", { retryAfterSeconds: 30 }));
  expect(judgeTokenAnswer(429, {}, { retryAfter: "Wed, 21 Oct 2026 07:28:00 GMT" })).toEqual(retry("HTTP_429"));
  expect(judgeTokenAnswer(200, { access_token: "a", scope: "x,y" }, { scopeSeparator: "," })).toEqual(
    granted({ accessToken: "a", scopes: ["x", "y"] }),
  );
});

test("tells a request that was never sent from one whose answer is missing", () => {
  const failed = (sent: boolean) => judgeTokenFailure(new EgressError("timeout", "late", sent));
  expect(failed(false)).toEqual({ kind: "retry", error: "EGRESS_TIMEOUT", sent: false });
  expect(failed(true)).toEqual({ kind: "unknown", error: "EGRESS_TIMEOUT" });
});

const classes = {
  name_at: "fault.code",
  terminal: [{ error: "token_gone" }, { status: 410 }],
  transient: [{ error: "invalid_grant", status: 503 }, { status: 401 }],
  integration: [{ error: "app_suspended" }],
};

test.each([
  ["the app's own name for the end", 200, "token_gone", { kind: "rejected", error: "token_gone" }],
  ["a status without a name", 410, undefined, { kind: "rejected", error: "HTTP_410" }],
  ["a name together with a status, before the standard", 503, "invalid_grant", retry("invalid_grant")],
  [
    "the standard, where the app says nothing of it",
    400,
    "invalid_grant",
    { kind: "rejected", error: "invalid_grant" },
  ],
  ["a status that the app sees otherwise than the standard", 401, undefined, retry("HTTP_401")],
  ["a fault of the client", 400, "app_suspended", { kind: "client_rejected", error: "app_suspended" }],
  [
    "a standard name, before a status alone",
    410,
    "invalid_client",
    { kind: "client_rejected", error: "invalid_client" },
  ],
  ["what nobody names", 400, "slow_down", retry("slow_down")],
])("reads an app's errors as its entry says: %s", (_name, status, code, outcome) => {
  expect(judgeTokenAnswer(status, code && { fault: { code } }, { errors: classes })).toEqual(outcome);
});

test("an app whose errors stand elsewhere still gets its tokens", () => {
  expect(judgeTokenAnswer(200, { access_token: "a" }, { errors: classes })).toEqual(granted({ accessToken: "a" }));
});
