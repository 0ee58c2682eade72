// Answers that try to be two, against a raw TLS upstream: nothing behind an answer's end is ever taken for the next request's
// answer, and a connection that said more than it was asked is not used again.
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type Egress, openEgress } from "#libs/egress.ts";
import { EgressError } from "#libs/egress-error.ts";
import { startTlsUpstream, type TlsUpstream, upstreamHost } from "../support/tls-upstream.ts";

const ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const evil = "HTTP/1.1 200 OK\r\nx-evil: 1\r\ncontent-length: 4\r\n\r\nevil";
const next = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext";

let upstream: TlsUpstream;
let egress: Egress;
beforeAll(async () => {
  upstream = await startTlsUpstream();
});
afterAll(() => upstream.close());
beforeEach(() => {
  upstream.requests.length = 0;
  egress = openEgress({
    resolve: async () => ["127.0.0.1"],
    exemptTargets: [`${upstreamHost}:${upstream.port}`],
    extraCa: upstream.ca,
  });
});
afterEach(() => egress.close());

/** The body of the answer, or the kind of the failure. */
async function send(method = "GET"): Promise<string> {
  const url = new URL(`https://${upstreamHost}:${upstream.port}/x`);
  try {
    const { body } = await egress.send({ url, method, headers: [], totalTimeoutMs: 3000, maxBodyBytes: 100_000 });
    return body.toString("latin1");
  } catch (error) {
    return error instanceof EgressError ? error.kind : String(error);
  }
}

describe("what follows an answer", () => {
  it.each([
    ["another answer", evil],
    ["garbage", "GARBAGE\r\n\r\n"],
    ["one byte", "x"],
    ["an empty line and another answer", `\r\n${evil}`],
  ])("in the same breath, %s, ends the connection and reaches no request", async (_what, behind) => {
    upstream.answerWith(ok + behind);
    expect(["ok", "malformed"]).toContain(await send());
    const before = upstream.connections();
    upstream.answerWith(next);
    expect([await send(), await send()]).toEqual(["next", "next"]);
    expect(upstream.connections()).toBeGreaterThan(before);
  });

  it.each([
    ["another answer", evil],
    ["garbage", "GARBAGE\r\n\r\n"],
  ])("a moment later, %s, ends the connection and reaches no request", async (_what, behind) => {
    upstream.answerWith((socket) => {
      socket.write(ok);
      setTimeout(() => socket.write(behind), 50);
    });
    expect(await send()).toBe("ok");
    await expect.poll(() => upstream.sockets.size).toBe(0);
    upstream.answerWith(next);
    expect(await send()).toBe("next");
  });

  it("to HEAD, a body that must not be there, ends the connection and reaches no request", async () => {
    upstream.answerWith(`HTTP/1.1 200 OK\r\ncontent-length: ${evil.length}\r\n\r\n${evil}`);
    expect(["", "malformed"]).toContain(await send("HEAD"));
    upstream.answerWith(next);
    expect(await send()).toBe("next");
  });

  it.each([204, 304])("of %i, a body that must not be there, reaches no request", async (status) => {
    upstream.answerWith(`HTTP/1.1 ${status} X\r\ncontent-length: ${evil.length}\r\n\r\n${evil}`);
    expect(["", "malformed"]).toContain(await send());
    upstream.answerWith(next);
    expect([await send(), await send()]).toEqual(["next", "next"]);
  });

  it("after an honest answer, nothing: the connection is used again", async () => {
    upstream.answerWith(next);
    const before = upstream.connections();
    await send();
    await sleep(50);
    await send();
    expect(upstream.connections() - before).toBe(1);
  });
});

describe("a chunked answer", () => {
  const chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

  it("is its chunks, without their extensions and the trailers", async () => {
    for (const extension of ['a=b;c="d"', "x".repeat(1024 * 1024)]) {
      upstream.answerWith(`${chunked}2;${extension}\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n`);
      expect(await send()).toBe("ok");
    }
  });

  it.each([
    ["a size that is no number", "xyz\r\nok\r\n0\r\n\r\n"],
    ["a negative size", "-2\r\nok\r\n0\r\n\r\n"],
    ["a size with 0x", "0x2\r\nok\r\n0\r\n\r\n"],
    ["a size beyond all numbers", "fffffffffffffffff\r\nok\r\n0\r\n\r\n"],
    ["a chunk longer than its size", "2\r\nokay\r\n0\r\n\r\n"],
    ["bare line feeds", "2\nok\n0\n\n"],
    ["a NUL in an extension", "2;\u0000\r\nok\r\n0\r\n\r\n"],
    ["trailers over the limit of headers", `0\r\n${`x-a: ${"a".repeat(1000)}\r\n`.repeat(20)}\r\n`],
  ])("with %s is malformed, and its connection is closed", async (_what, chunks) => {
    upstream.answerWith(chunked + chunks);
    expect(await send()).toBe("malformed");
    await expect.poll(() => upstream.sockets.size).toBe(0);
  });
});

it.each([
  ["a NUL in a header's value", "x-a: b\u0000c\r\n"],
  ["a NUL in a header's name", "x-\u0000a: b\r\n"],
  ["a DEL in a header's value", "x-a: b\u007fc\r\n"],
  ["a vertical tab before a length", "content-length:\u000b0\r\n"],
  ["a length with a sign", "content-length: +2\r\n"],
  ["a list of lengths", "content-length: 2, 2\r\n"],
  ["an empty length", "content-length:\r\n"],
  ["a length in hexadecimal", "content-length: 0x2\r\n"],
  ["a header without a name", ": b\r\n"],
  ["a line without a colon", "x-a\r\n"],
  ["a first header that is folded", " x-a: b\r\n"],
  ["chunked twice", "transfer-encoding: chunked, chunked\r\n"],
  ["chunked that is not last", "transfer-encoding: chunked, identity\r\ncontent-length: 2\r\n"],
])("an answer with %s is malformed", async (_what, line) => {
  upstream.answerWith(`HTTP/1.1 200 OK\r\n${line}x-b: c\r\n\r\nok`);
  expect(await send()).toBe("malformed");
});
