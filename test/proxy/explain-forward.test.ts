// ExplainForward over true gRPC: the request as Forward would send it, without the credential, or the rule that refuses it.
import { afterAll, beforeAll, beforeEach, expect, it, test } from "vitest";
import { notFound, StatusError } from "#libs/errors.ts";
import type { ExplainForwardRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { upstreamHost } from "../support/tls-upstream.ts";
import { accessSecret, forwardRequest, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

let fixture: ProxyFixture;
beforeAll(async () => {
  fixture = await startProxyFixture();
});
afterAll(() => fixture.stop());
beforeEach(() => fixture.reset());

function explain(change: Partial<ExplainForwardRequest> = {}) {
  return fixture.gateway.explainForward(forwardRequest(change), {
    token: fixture.token,
    deadlineMs: Date.now() + 10_000,
  });
}

it("tells URL and headers with the credential taken out, and sends nothing", async () => {
  fixture.answers = {
    account: {},
    lease: {
      headers: [{ name: "Authorization", value: `Bearer ${accessSecret}` }],
      query: [{ name: "api_key", value: "k-e-y-1" }],
    },
  };
  const answer = await explain({ method: "POST", headers: [{ name: "X-Custom", value: "v" }] });
  expect(answer).toMatchObject({ allowed: true, rule: "ALLOWED" });
  expect(answer.url).toBe(`https://${upstreamHost}:${fixture.upstream.port}/v1/things?a=1&api_key=REDACTED`);
  expect(answer.headers).toEqual([
    { name: "user-agent", value: "deputy" },
    { name: "x-custom", value: "v" },
    { name: "Authorization", value: "REDACTED" },
  ]);
  expect(JSON.stringify(answer)).not.toMatch(/ya29|k-e-y/);
  expect(fixture.upstream.connections()).toBe(0);
});

test.each<[string, Partial<ExplainForwardRequest>, string]>([
  ["a host that is not the app's", { url: "https://elsewhere.com/x" }, "HOST_NOT_ALLOWED"],
  ["a restricted header", { headers: [{ name: "Host", value: "x" }] }, "HEADER_RESTRICTED"],
  ["an injected header", { headers: [{ name: "authorization", value: "x" }] }, "HEADER_INJECTED"],
  ["a method that is not sent", { method: "TRACE" }, "INVALID_FIELD"],
])("names the rule that refuses %s", async (_name, change, rule) => {
  const answer = await explain(change);
  expect(answer).toMatchObject({ allowed: false, rule, url: "", headers: [] });
  expect(answer.message).toMatch(/\w{3}/);
});

it("tells that an app's proxy is off, and that the account needs its user", async () => {
  fixture.answers = { account: {}, lease: { proxyEnabled: false } };
  expect(await explain()).toMatchObject({ allowed: false, rule: "PROXY_DISABLED" });
  const vaultFault = new StatusError(
    "FAILED_PRECONDITION",
    "NEEDS_REAUTH",
    "The user has to connect the account again.",
  );
  fixture.answers = { account: {}, lease: {}, vaultFault };
  expect(await explain()).toMatchObject({ allowed: false, rule: "NEEDS_REAUTH" });
});

it("answers NOT_FOUND for an account that is not there, like Forward", async () => {
  await expect(explain({ accountId: "apn_9" })).rejects.toMatchObject(notFound("account"));
});
