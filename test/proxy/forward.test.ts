// Forward over true gRPC and TLS: what reaches the upstream, what comes back, and each refusal.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { AccountState } from "#proto/deputy/account/v1/accounts.ts";
import type { ForwardRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { signToken } from "../support/stand-in-service.ts";
import { upstreamHost } from "../support/tls-upstream.ts";
import { accessSecret, forwardRequest, ok, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

let fixture: ProxyFixture;
beforeAll(async () => {
  fixture = await startProxyFixture();
});
afterAll(() => fixture.stop());
beforeEach(() => fixture.reset());

function forward(change: Partial<ForwardRequest> = {}, more: { token?: string; deadlineMs?: number } = {}) {
  const options = { token: fixture.token, deadlineMs: Date.now() + 20_000, ...more };
  return fixture.gateway.forward(forwardRequest(change), options);
}

/** The refusal, and that nothing has reached the upstream. */
async function refusal(change: Partial<ForwardRequest>, more: { token?: string } = {}): Promise<string> {
  const error = await forward(change, more).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof StatusError)) throw new Error(`not refused: ${String(error)}`);
  expect(fixture.upstream.requests).toEqual([]);
  return `${error.code} ${error.reason}: ${error.message}`;
}

const headersOf = (list: { name: string; value: string }[]) => Object.fromEntries(list.map((h) => [h.name, h.value]));
const header = (name: string, value: string) => ({ name, value });

describe("a request that is sent", () => {
  it("carries method, path, headers and body, with the credential put in", async () => {
    fixture.upstream.answerWith(ok('{"made":1}', "content-type: application/json\r\nx-upstream: yes\r\n"));
    const answer = await forward({
      method: "POST",
      url: "/things?a=1&b=%20x",
      headers: [header("Content-Type", "application/json"), header("X-Custom", "v")],
      body: Buffer.from('{"a":1}'),
    });
    const [request = ""] = fixture.upstream.requests;
    expect(request).toMatch(/^POST \/v1\/things\?a=1&b=%20x HTTP\/1\.1\r\n/);
    expect(request).toContain(`authorization: Bearer ${accessSecret}\r\n`.replace("authorization", "Authorization"));
    expect(request).toContain("content-type: application/json\r\n");
    expect(request).toContain("x-custom: v\r\n");
    expect(request).toContain("user-agent: deputy\r\n");
    expect(request).toMatch(/\r\n\r\n\{"a":1\}$/);
    expect(answer).toMatchObject({ status: 200, attempts: 1, refreshed: false });
    expect(headersOf(answer.headers)).toMatchObject({ "content-type": "application/json", "x-upstream": "yes" });
    expect(answer.body.toString()).toBe('{"made":1}');
    expect(answer.upstreamDurationMs).toBeGreaterThanOrEqual(0);
  });

  it("puts an injected query parameter after the caller's own and escapes it", async () => {
    fixture.answers = { account: {}, lease: { headers: [], query: [{ name: "api_key", value: "k&y=1" }] } };
    await forward({ url: "/things?a=1" });
    await forward({ url: "/things" });
    expect(fixture.upstream.requests.map((request) => request.split(" ")[1])).toEqual([
      "/v1/things?a=1&api_key=k%26y%3D1",
      "/v1/things?api_key=k%26y%3D1",
    ]);
  });

  it("goes to an absolute URL on the app's list", async () => {
    await forward({ url: `https://${upstreamHost}:${fixture.upstream.port}/other` });
    expect(fixture.upstream.requests[0]).toMatch(/^GET \/other HTTP/);
  });

  it("gives an upstream's failure and redirect back as data, once, without following", async () => {
    for (const status of [302, 401, 429, 500]) {
      fixture.upstream.requests.length = 0;
      fixture.upstream.answerWith(`HTTP/1.1 ${status} X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n`);
      const answer = await forward();
      expect(answer.status).toBe(status);
      expect(headersOf(answer.headers)).toMatchObject({ location: "/elsewhere" });
      expect(fixture.upstream.requests).toHaveLength(1);
    }
  });

  it("says when the vault refreshed the credential on the way", async () => {
    fixture.answers = { account: {}, lease: { refreshed: true } };
    expect(await forward()).toMatchObject({ refreshed: true });
  });

  it("leases with the caller's own token and leaves nothing out of what names the account", async () => {
    await forward();
    expect(fixture.leases).toHaveLength(1);
    expect(fixture.leases[0]?.call).toMatchObject({ token: fixture.token, caller: { service: "proxy" } });
  });
});

describe("the form of a request is refused, naming the field,", () => {
  it.each([
    ["without an account", { accountId: "" }, /^INVALID_ARGUMENT INVALID_FIELD: account_id/],
    ["without a user", { externalUserId: "" }, /^INVALID_ARGUMENT INVALID_FIELD: external_user_id/],
    ["with an unknown method", { method: "TRACE" }, /^INVALID_ARGUMENT INVALID_FIELD: method/],
    ["with a method in small letters", { method: "get" }, /^INVALID_ARGUMENT INVALID_FIELD: method/],
    ["without a URL", { url: "" }, /^INVALID_ARGUMENT INVALID_FIELD: url/],
    ["with a body on GET", { body: Buffer.from("x") }, /^INVALID_ARGUMENT INVALID_FIELD: body/],
    [
      "with a body over 8 MiB",
      { method: "POST", body: Buffer.alloc(8 * 1024 * 1024 + 1) },
      /FIELD: body has|FIELD: body:/,
    ],
    ["with a time-out over 30 s", { timeoutMs: 30_001 }, /^INVALID_ARGUMENT INVALID_FIELD: timeout_ms/],
    ["with a negative time-out", { timeoutMs: -1 }, /^INVALID_ARGUMENT INVALID_FIELD: timeout_ms/],
    [
      "with an account beside an inline credential",
      { inlineCredential: { appSlug: "acme", fields: { api_key: "sandbox-key-inline" } } },
      /^INVALID_ARGUMENT INVALID_FIELD: account_id/,
    ],
    [
      "with an inline credential that lacks a field of the app",
      { accountId: "", inlineCredential: { appSlug: "acme", fields: {} } },
      /^INVALID_ARGUMENT INVALID_FIELD: inline_credential.fields.api_key/,
    ],
  ] as const)("%s", async (_name, change, expected) => {
    expect(await refusal(change)).toMatch(expected);
    expect(fixture.leases).toEqual([]);
  });
});

describe("a request with a credential of its own", () => {
  const api_key = "sandbox-key-inline";
  const inline = { externalUserId: "", accountId: "", inlineCredential: { appSlug: "acme", fields: { api_key } } };

  it("is sent by the app's rules, and asks neither the account service nor the vault", async () => {
    fixture.upstream.answerWith(ok(`{"echo":"${api_key}"}`));
    const answer = await forward({ ...inline, url: "/things?a=1" });
    const [request = ""] = fixture.upstream.requests;
    expect(request).toMatch(/^GET \/v1\/things\?a=1 HTTP\/1\.1\r\n/);
    expect(request).toContain(`x-api-key: ${api_key}\r\n`);
    expect(fixture.leases).toEqual([]);
    expect(answer).toMatchObject({ status: 200, attempts: 1, refreshed: false });
    expect(answer.body.toString()).not.toContain(api_key);
  });

  it("goes nowhere but to the app's hosts, and its key cannot be set by a header", async () => {
    expect(await refusal({ ...inline, url: "https://elsewhere.com/x" })).toMatch(/^PERMISSION_DENIED HOST_NOT_ALLOWED/);
    expect(await refusal({ ...inline, headers: [header("X-Api-Key", "other")] })).toMatch(/HEADER_INJECTED/);
    expect(await refusal({ ...inline, inlineCredential: { appSlug: "absent", fields: {} } })).toMatch(/^NOT_FOUND/);
  });

  it("is given back as it came when the upstream refuses its key", async () => {
    fixture.upstream.answerWith("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
    expect(await forward(inline)).toMatchObject({ status: 401, attempts: 1, refreshed: false });
  });
});

describe("a rule refuses", () => {
  it.each<[string, Partial<ForwardRequest>, RegExp]>([
    [
      "a restricted header",
      { headers: [header("Cookie", "a=b")] },
      /^INVALID_ARGUMENT HEADER_RESTRICTED: Header Cookie/,
    ],
    ["the injected header", { headers: [header("AUTHORIZATION", "x")] }, /^INVALID_ARGUMENT HEADER_INJECTED/],
    [
      "another host",
      { url: "https://evil.example.com/" },
      /^PERMISSION_DENIED HOST_NOT_ALLOWED: Domain evil.example.com/,
    ],
    ["plain http", { url: `http://${upstreamHost}/` }, /^INVALID_ARGUMENT SCHEME_NOT_ALLOWED/],
    ["leaving the base path", { url: "/../x" }, /^INVALID_ARGUMENT PATH_DOT_SEGMENT/],
  ])("%s", async (_name, change, expected) => {
    expect(await refusal(change)).toMatch(expected);
  });

  it.each([
    "/x?api_key=mine",
    "/x?API_KEY=mine",
    "/x?a=1;api_key=mine",
    "/x?%61pi_key=mine",
    "/x?api.key=mine",
    "/x?api_key[]=1",
  ])("an injected query parameter of the caller's own: %s", async (url) => {
    fixture.answers = { account: {}, lease: { query: [{ name: "api_key", value: "secret" }] } };
    expect(await refusal({ url })).toMatch(/^INVALID_ARGUMENT QUERY_INJECTED/);
  });

  it("an absolute URL where the base URL is the account's own", async () => {
    fixture.answers = { account: {}, lease: { absoluteUrlsAllowed: false } };
    expect(await refusal({ url: `https://${upstreamHost}:${fixture.upstream.port}/x` })).toMatch(
      /^INVALID_ARGUMENT PATH_REQUIRED/,
    );
    expect(await forward({ url: "/x" })).toMatchObject({ status: 200 });
  });

  it("a port that the app's entry does not list", async () => {
    const url = `https://${upstreamHost}:8443/x`;
    expect(await refusal({ url })).toMatch(/^PERMISSION_DENIED PORT/);
    fixture.answers = { account: {}, lease: { allowedPorts: [8443] } };
    // Judged well now; nothing listens there.
    expect(await refusal({ url })).not.toMatch(/^PERMISSION_DENIED PORT/);
  });

  it("an app for which the proxy is off", async () => {
    fixture.answers = { account: {}, lease: { proxyEnabled: false } };
    expect(await refusal({})).toMatch(/^FAILED_PRECONDITION PROXY_DISABLED/);
  });

  it("an account that is being revoked, even when the vault still leases", async () => {
    fixture.answers = { account: { state: AccountState.REVOKING }, lease: {} };
    expect(await refusal({})).toMatch(/^FAILED_PRECONDITION ACCOUNT_REVOKED/);
  });

  it("a lease that has ended", async () => {
    fixture.answers = { account: {}, lease: { leaseDurationMs: 0 } };
    expect(await refusal({})).toMatch(/^UNAVAILABLE LEASE_EXPIRED/);
    expect(fixture.leases.length, "and asks anew first").toBeGreaterThan(1);
  });

  it("another user's account and an absent one with the same words", async () => {
    const foreign = await refusal({ externalUserId: "user-2" });
    expect(await refusal({ accountId: "apn_2" })).toBe(foreign);
    expect(foreign).toMatch(/^NOT_FOUND ACCOUNT_NOT_FOUND/);
  });

  it("what the vault refuses, in the vault's words", async () => {
    const vaultFault = new StatusError("FAILED_PRECONDITION", "RECONNECT_REQUIRED", "The user has to connect again.");
    fixture.answers = { account: {}, lease: {}, vaultFault };
    expect(await refusal({})).toBe("FAILED_PRECONDITION RECONNECT_REQUIRED: The user has to connect again.");
  });

  it("a token without the scope, before anything is leased", async () => {
    const token = await signToken({ sub: "cli_2", project_id: "proj_1", scope: "connect:accounts:read" });
    expect(await refusal({}, { token })).toMatch(/^PERMISSION_DENIED SCOPE_MISSING/);
    expect(fixture.leases).toEqual([]);
  });
});

describe("an upstream that fails", () => {
  async function failure(change: Partial<ForwardRequest> = {}): Promise<string> {
    const error = await forward(change).catch((reason: unknown) => reason);
    return error instanceof StatusError ? `${error.code} ${error.reason}` : `no refusal: ${JSON.stringify(error)}`;
  }

  it("by silence is DEADLINE_EXCEEDED after the time-out asked for", async () => {
    fixture.upstream.answerWith(() => undefined);
    const startMs = Date.now();
    expect(await failure({ timeoutMs: 300 })).toBe("DEADLINE_EXCEEDED UPSTREAM_TIMEOUT");
    expect(Date.now() - startMs).toBeLessThan(3000);
  });

  it("by breaking the connection is UNAVAILABLE", async () => {
    fixture.upstream.answerWith((socket) => socket.destroy());
    expect(await failure()).toBe("UNAVAILABLE UPSTREAM_RESET");
  });

  it("with an answer over 8 MiB is RESOURCE_EXHAUSTED", async () => {
    fixture.upstream.answerWith(ok("x".repeat(8 * 1024 * 1024 + 1)));
    expect(await failure()).toBe("RESOURCE_EXHAUSTED UPSTREAM_TOO_LARGE");
  });

  it("with something that is not HTTP is told as such", async () => {
    fixture.upstream.answerWith("NOT HTTP AT ALL\r\n\r\n");
    expect(await failure()).toBe("UNAVAILABLE UPSTREAM_MALFORMED");
    // The upstream may have acted: nothing that clients repeat.
    expect(await failure({ method: "POST" })).toBe("FAILED_PRECONDITION UPSTREAM_MALFORMED");
  });

  it("is let go when the caller leaves", async () => {
    const leaving = new AbortController();
    let closed = false;
    fixture.upstream.answerWith((socket) => {
      socket.on("close", () => {
        closed = true;
      });
      leaving.abort();
    });
    const options = { token: fixture.token, deadlineMs: Date.now() + 20_000, signal: leaving.signal };
    await expect(fixture.gateway.forward(forwardRequest(), options)).rejects.toMatchObject({ code: "CANCELLED" });
    await expect.poll(() => closed, { timeout: 3000 }).toBe(true);
  });
});
