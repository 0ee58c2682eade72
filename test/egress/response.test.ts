// What an upstream may answer: each response vector over gRPC and over REST, against raw bytes.
//
// Two conflicts are decided here. The vectors answer a malformed answer with 502, the rule that nothing that clients repeat
// follows an upstream that may have acted with 424: it is 502 for methods that only read, as the vectors have it, and 424 for
// the others. And a packed body, which one vector refuses once it would inflate, is passed through as bytes, which the same
// vector allows: nothing is inflated, so nothing can explode.
import type { TLSSocket } from "node:tls";
import { gunzipSync, gzipSync } from "node:zlib";
import { afterAll, beforeAll, beforeEach, expect } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { proxyHttpError } from "../../services/gateway/http-errors.ts";
import { accessSecret, ok } from "../proxy/proxy-fixture.ts";
import { type Action, testVectors } from "../support/integration-vectors.ts";
import { type RestChain, startRestChain } from "./rest-chain.ts";

let chain: RestChain;
beforeAll(async () => {
  chain = await startRestChain();
});
afterAll(() => chain.stop());
beforeEach(() => {
  chain.proxy.reset();
  chain.logged.length = 0;
});

/** These bytes are refused with the code and status of the vector, and to a POST with nothing that clients repeat. */
const malformed =
  (bytes: string): Action =>
  async ({ code, http }) => {
    chain.proxy.upstream.answerWith(bytes);
    expect(await chain.refusal()).toBe(code);
    expect((await chain.send("/x")).status).toBe(http);
    expect(await chain.refusal({ method: "POST" })).toBe("FAILED_PRECONDITION");
    expect((await chain.send("/x", { method: "POST" })).status).toBe(424);
    expect(chain.proxy.upstream.requests).toHaveLength(4);
  };

/** An upstream that goes on like this ends at the deadline, and its connection is closed. */
const late =
  (answer: (socket: TLSSocket) => void): Action =>
  async ({ code, http }) => {
    chain.proxy.upstream.answerWith(answer);
    const startMs = performance.now();
    const error = await chain.forward({ timeoutMs: 700 }).catch((reason: unknown) => reason);
    if (!(error instanceof StatusError)) throw new Error(`no refusal: ${String(error)}`);
    expect([error.code, proxyHttpError(error).status]).toEqual([code, http]);
    expect(performance.now() - startMs).toBeGreaterThan(650);
    expect(performance.now() - startMs).toBeLessThan(5000);
    await expect.poll(() => chain.proxy.upstream.sockets.size).toBe(0);
  };

testVectors("response", {
  "response-001": async () => {
    const packed = gzipSync(Buffer.alloc(200 * 1024 * 1024));
    chain.proxy.upstream.answerWith((socket) => {
      socket.write(`HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: ${packed.length}\r\n\r\n`);
      socket.write(packed);
    });
    const answer = await chain.forward();
    expect(answer.body.equals(packed)).toBe(true);
    expect(answer.headers).toContainEqual({ name: "content-encoding", value: "gzip" });
    expect(chain.proxy.upstream.requests[0]).toContain("accept-encoding: identity\r\n");
    expect(gunzipSync(answer.body)).toHaveLength(200 * 1024 * 1024);
  },
  "response-002": async ({ code, http }) => {
    // In chunks: no length announces it.
    chain.proxy.upstream.answerWith((socket) => {
      socket.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
      const mebibyte = Buffer.alloc(1024 * 1024, "x");
      for (let index = 0; index < 11; index += 1) socket.write(`100000\r\n${mebibyte}\r\n`);
      socket.write("0\r\n\r\n");
    });
    const error = await chain.forward().catch((reason: unknown) => reason);
    if (!(error instanceof StatusError)) throw new Error("no refusal");
    expect([error.code, proxyHttpError(error).status]).toEqual([code, http]);
  },
  "response-004": late((socket) => {
    socket.write("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n");
    const drip = setInterval(() => socket.write("x"), 200);
    socket.on("close", () => clearInterval(drip));
  }),
  "response-005": late(() => undefined),
  "response-006": malformed(
    `HTTP/1.1 200 OK\r\n${`x-a: ${"a".repeat(1000)}\r\n`.repeat(128)}content-length: 0\r\n\r\n`,
  ),
  "response-007": malformed("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
  "response-008": malformed("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"),
  "response-009": malformed("HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 0\r\n\r\n"),
  "response-010": malformed("HTTP/1.1 200 OK\ncontent-length: 0\n\n"),
  "response-016": malformed("HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n"),
  "response-018": async () => {
    chain.proxy.upstream.answerWith(ok("{}", "Connection: X-Internal\r\nX-Internal: 1\r\nX-Kept: 1\r\n"));
    const names = (await chain.forward()).headers.map(({ name }) => name);
    expect(names).toContain("x-kept");
    expect(names.filter((name) => ["connection", "x-internal"].includes(name))).toEqual([]);
    const { headers } = await chain.send("/x");
    expect([headers.get("x-kept"), headers.has("x-internal")]).toEqual(["1", false]);
  },
  "response-020": async () => {
    const dropped = ["alt-svc", "strict-transport-security", "clear-site-data"];
    chain.proxy.upstream.answerWith(ok("{}", `${dropped.map((name) => `${name}: x\r\n`).join("")}x-kept: 1\r\n`));
    const { status, headers } = await chain.send("/x");
    expect([status, headers.get("x-kept"), dropped.filter((name) => headers.has(name))]).toEqual([200, "1", []]);
  },
  "response-021": async () => {
    chain.proxy.upstream.answerWith(ok("<script>1</script>", "content-type: text/html\r\n"));
    const answer = await chain.send("/x");
    expect([answer.status, await answer.text()]).toEqual([200, "<script>1</script>"]);
    expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
    expect(answer.headers.get("content-security-policy")).toContain("sandbox");
    expect(answer.headers.get("content-disposition")).toMatch(/^attachment/);
  },
  "response-022": async () => {
    // An answer that repeats the request is answered; whether the secret in it is passed on is the app's entry to say.
    chain.proxy.upstream.answerWith((socket) => socket.write(ok(String(chain.proxy.upstream.requests.at(-1)))));
    const answer = await chain.send("/x");
    expect([answer.status, await answer.text()]).toEqual([200, expect.stringContaining("GET /v1/x HTTP/1.1")]);
    expect(chain.proxy.upstream.requests[0]).toContain(accessSecret);
    expect(chain.logged.length).toBeGreaterThan(0);
    expect(chain.logged.join()).not.toContain(accessSecret);
  },
});
