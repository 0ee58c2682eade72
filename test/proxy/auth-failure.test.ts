// Which answers refuse the credential, and what Forward and ForwardStream do about them.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { StatusError } from "#libs/errors.ts";
import type { ForwardRequest, ForwardStreamRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { Credential, type RefreshCredentialResponse } from "#proto/deputy/vault/v1/credentials.ts";
import { AuthFailureRule, type InjectionLease } from "#proto/deputy/vault/v1/leases.ts";
import { isAuthFailure } from "../../services/proxy/auth-failure.ts";
import { forwardRequest, ok, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

describe("an answer", () => {
  const rules = [
    { status: 403, headerName: "x-error", headerValue: "Expired_Token" },
    { status: 200, bodyPath: "error.code", bodyValue: "190" },
    { status: 418 },
  ].map((rule) => AuthFailureRule.fromPartial(rule));
  const json = (value: unknown) => Buffer.from(JSON.stringify(value));
  const nothing = Buffer.alloc(0);
  it.each<[string, boolean, { status: number; headers?: [string, string][]; body?: Buffer }]>([
    ["401", true, { status: 401 }],
    ["a status of the app's", true, { status: 418 }],
    ["another status", false, { status: 403 }],
    ["a header of the app's, in any case", true, { status: 403, headers: [["x-error", "code=EXPIRED_TOKEN"]] }],
    ["that header with another value", false, { status: 403, headers: [["x-error", "no"]] }],
    ["that header with another status", false, { status: 400, headers: [["x-error", "expired_token"]] }],
    ["a text in the body", true, { status: 200, body: json({ error: { code: 190 } }) }],
    ["another text there", false, { status: 200, body: json({ error: { code: 191 } }) }],
    ["a body of another shape", false, { status: 200, body: json([null]) }],
    ["a body that is not JSON", false, { status: 200, body: Buffer.from("{190") }],
    ["a body over 64 KiB", false, { status: 200, body: json({ error: { code: 190 }, pad: "x".repeat(65_536) }) }],
    ["an inherited property", false, { status: 200, body: json({}) }],
  ])("with %s: %s", (_what, expected, { status, headers = [], body = nothing }) => {
    expect(isAuthFailure({ status, headers, body }, rules)).toBe(expected);
  });
});

let fixture: ProxyFixture;
beforeAll(async () => {
  fixture = await startProxyFixture();
});
afterAll(() => fixture.stop());

const refused = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 4\r\n\r\ndead";
const lease = (generation: bigint): Partial<InjectionLease> => ({
  refreshable: true,
  generation,
  headers: [{ name: "Authorization", value: `Bearer token-generation-${generation}` }],
});

/** The vault as it is after the account's credential has come to this generation. */
function vaultAt(generation: bigint, more: Partial<InjectionLease> = {}): void {
  fixture.answers = { account: {}, lease: { ...lease(generation), ...more }, refresh };
  async function refresh(held: bigint): Promise<RefreshCredentialResponse> {
    if (held === generation) vaultAt(generation + 1n, more);
    const refreshed = held === generation;
    return { credential: Credential.fromPartial({ generation: refreshed ? generation + 1n : generation }), refreshed };
  }
}

/** Answers by which generation's token comes. */
function upstreamTakes(generation: bigint, refusal = refused): void {
  fixture.upstream.answerWith((socket) => {
    const isGood = fixture.upstream.requests.at(-1)?.includes(`token-generation-${generation}\r\n`);
    socket.write(isGood ? ok("good") : refusal);
  });
}

beforeEach(() => {
  fixture.reset();
  vaultAt(1n);
  upstreamTakes(2n);
});

const options = () => ({ token: fixture.token, deadlineMs: Date.now() + 20_000 });
const forward = (change: Partial<ForwardRequest> = {}) => fixture.gateway.forward(forwardRequest(change), options());

async function stream(change: Partial<ForwardRequest>, ...chunks: readonly string[]) {
  async function* pieces() {
    yield { piece: { $case: "head", value: forwardRequest(change) } } as ForwardStreamRequest;
    for (const chunk of chunks) yield { piece: { $case: "chunk" as const, value: Buffer.from(chunk) } };
  }
  let body = "";
  let head: object = {};
  for await (const { piece } of fixture.gateway.forwardStream(pieces(), options())) {
    if (piece?.$case === "head") head = piece.value;
    if (piece?.$case === "chunk") body += piece.value.toString();
  }
  return { ...head, body };
}

describe("a credential that the upstream refuses", () => {
  it("is refreshed once, with the caller's token, and the request sent again, a POST too", async () => {
    const answer = await forward({ method: "POST", body: Buffer.from("x") });
    expect(answer).toMatchObject({ status: 200, attempts: 2, refreshed: true });
    expect(fixture.refreshes).toEqual([{ generation: 1n, externalUserId: "user-1", token: fixture.token }]);
    expect(fixture.upstream.requests).toHaveLength(2);
  });

  it("is refreshed in a stream before anything of the answer is passed on", async () => {
    expect(await stream({})).toMatchObject({ status: 200, body: "good", attempts: 2, refreshed: true });
    expect(fixture.refreshes).toHaveLength(1);
    await expect.poll(() => fixture.upstream.sockets.size).toBeLessThan(2);
  });

  it("is not refreshed for a stream whose body is gone: the refusal is the answer", async () => {
    fixture.upstream.answerWith((socket) => {
      if (fixture.upstream.requests.at(-1)?.endsWith("0\r\n\r\n")) socket.write(refused);
    });
    const answer = await stream({ method: "POST" }, "a", "b");
    expect(answer).toMatchObject({ status: 401, body: "dead", attempts: 1, refreshed: false });
    expect(fixture.refreshes).toEqual([]);
  });

  it.each([
    ["Forward", () => forward().then(({ body, ...rest }) => ({ ...rest, body: body.toString() }))],
    ["ForwardStream", () => stream({})],
  ])("is known by the app's rule about the body in %s, too", async (_way, send) => {
    const rule = AuthFailureRule.fromPartial({ status: 200, bodyPath: "error", bodyValue: "token_expired" });
    vaultAt(1n, { authFailureRules: [rule] });
    upstreamTakes(2n, ok('{"error":"token_expired"}'));
    expect(await send()).toMatchObject({ status: 200, body: "good", attempts: 2, refreshed: true });
    upstreamTakes(2n, ok('{"error":"other"}'));
    vaultAt(1n, { authFailureRules: [rule] });
    expect(await send()).toMatchObject({ status: 200, body: '{"error":"other"}', attempts: 1, refreshed: false });
  });

  it("is told as it is when the next token is refused as well, after one refresh and two requests", async () => {
    upstreamTakes(99n);
    const answer = await forward();
    expect(answer).toMatchObject({ status: 401, attempts: 2, refreshed: true });
    expect([answer.body.toString(), fixture.refreshes.length, fixture.upstream.requests.length]).toEqual([
      "dead",
      1,
      2,
    ]);
  });

  it("is told as it is when the vault does not refresh it, whatever its reason", async () => {
    const { account, lease: held } = fixture.answers;
    const current = { credential: Credential.fromPartial({ generation: 1n }), refreshed: false };
    for (const refresh of [
      async () => current,
      () => Promise.reject(new StatusError("FAILED_PRECONDITION", "NEEDS_REAUTH", "Connect again.")),
      () => Promise.reject(new StatusError("UNAVAILABLE", "SEALED", "Later.")),
    ]) {
      fixture.upstream.requests.length = 0;
      fixture.answers = { account, lease: held, refresh };
      expect(await forward()).toMatchObject({ status: 401, attempts: 1, refreshed: false });
      expect(fixture.upstream.requests).toHaveLength(1);
    }
  });

  it("is not asked to be refreshed where it is a key", async () => {
    vaultAt(1n, { refreshable: false });
    expect(await forward()).toMatchObject({ status: 401, attempts: 1, refreshed: false });
    expect(fixture.refreshes).toEqual([]);
  });

  it("makes no storm of a hundred callers: each is sent again once and served", async () => {
    const answers = await Promise.all(Array.from({ length: 100 }, () => forward()));
    expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200));
    expect(
      fixture.refreshes.every(({ generation }) => generation === 1n),
      "of one generation",
    ).toBe(true);
    expect(fixture.upstream.requests.length).toBeLessThanOrEqual(200);
  });
});
