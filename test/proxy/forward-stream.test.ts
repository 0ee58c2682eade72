// ForwardStream over true gRPC and TLS: bodies both ways at once, who waits for whom, and what ends a stream.
import { setTimeout as sleep } from "node:timers/promises";
import type { TLSSocket } from "node:tls";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { StatusError } from "#libs/errors.ts";
import type {
  ForwardRequest,
  ForwardStreamRequest,
  ForwardStreamResponse,
} from "#proto/deputy/proxy/v1/proxy_service.ts";
import { pour } from "../support/tls-upstream.ts";
import { accessSecret, forwardRequest, ok, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

let fixture: ProxyFixture;
beforeAll(async () => {
  fixture = await startProxyFixture();
});
afterAll(() => fixture.stop());
beforeEach(() => fixture.reset());

type Piece = { piece: { $case: "head"; value: Partial<ForwardRequest> } | { $case: "chunk"; value: Buffer } };

const head = (change: Partial<ForwardRequest> = {}): Piece => ({
  piece: { $case: "head", value: forwardRequest(change) },
});
const chunk = (value: string | Buffer): Piece => ({ piece: { $case: "chunk", value: Buffer.from(value) } });
const post = { method: "POST", url: "/upload" };

async function* listed(pieces: readonly Piece[]): AsyncGenerator<Piece> {
  yield* pieces;
}

function open(
  pieces: readonly Piece[] | AsyncIterable<Piece>,
  more: { signal?: AbortSignal; deadlineMs?: number } = {},
) {
  const input = Array.isArray(pieces) ? listed(pieces) : pieces;
  const options = { token: fixture.token, deadlineMs: Date.now() + 20_000, ...more };
  return fixture.gateway.forwardStream(input as AsyncIterable<ForwardStreamRequest>, options)[Symbol.asyncIterator]();
}

type Answer = AsyncIterator<ForwardStreamResponse>;

async function headOf(answer: Answer) {
  const { value } = await answer.next();
  if (value?.piece?.$case !== "head") throw new Error(`no head: ${JSON.stringify(value)}`);
  return value.piece.value;
}

/** The text of the next chunk. */
async function textOf(answer: Answer): Promise<string> {
  const { value } = await answer.next();
  return value?.piece?.$case === "chunk" ? value.piece.value.toString() : `no chunk: ${JSON.stringify(value)}`;
}

/** What is left: the body, and the trailers at its end. */
async function restOf(answer: Answer) {
  const chunks: Buffer[] = [];
  for (;;) {
    const { value, done } = await answer.next();
    if (done === true) throw new Error("no end");
    if (value.piece?.$case === "end") return { body: Buffer.concat(chunks), trailers: value.piece.value.trailers };
    if (value.piece?.$case === "chunk") chunks.push(value.piece.value);
  }
}

async function failureOf(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  return error instanceof StatusError ? `${error.code} ${error.reason}: ${error.message}` : `no failure: ${error}`;
}

/** What the upstream got: head and body, with the chunks' lengths taken out. */
function received(): { head: string; body: string } {
  const text = fixture.upstream.requests.join("");
  const end = text.indexOf("\r\n\r\n") + 4;
  const parts = text.slice(end).split("\r\n");
  return { head: text.slice(0, end), body: parts.filter((_part, index) => index % 2 === 1).join("") };
}

const endless = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const wire = (text: string) => `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`;

const forever = 2 ** 40;

/** Waits until a number grows no more, and gives it. */
async function settled(count: () => number): Promise<number> {
  for (let last = -1; ; ) {
    await sleep(250);
    if (count() === last) return last;
    last = count();
  }
}

describe("a stream", () => {
  it("carries a body in chunks, the credential, and the answer's head, chunks and trailers", async () => {
    fixture.upstream.answerWith((socket) => {
      if (!fixture.upstream.requests.join("").endsWith("0\r\n\r\n")) return;
      socket.write(
        "HTTP/1.1 201 Created\r\nx-up: 1\r\nset-cookie: a=b\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n",
      );
      socket.write(`${wire("one")}${wire("two")}0\r\nx-sum: 7\r\nset-cookie: c=d\r\n\r\n`);
    });
    const headers = [{ name: "content-type", value: "multipart/form-data; boundary=b" }];
    const parts = [Buffer.from("--b\n\n"), Buffer.from([0, 255, 13]), Buffer.from("--b--")];
    const answer = open([head({ ...post, headers }), ...parts.map(chunk)]);
    expect(await headOf(answer)).toMatchObject({
      status: 201,
      headers: [{ name: "x-up", value: "1" }],
      attempts: 1,
      refreshed: false,
    });
    const { body, trailers } = await restOf(answer);
    expect([body.toString(), trailers]).toEqual(["onetwo", [{ name: "x-sum", value: "7" }]]);
    expect(await answer.next()).toMatchObject({ done: true });
    const request = received();
    expect(request.head).toMatch(/^POST \/v1\/upload HTTP/);
    expect(request.head).toContain(`Authorization: Bearer ${accessSecret}\r\n`);
    expect(request.head).toContain("content-type: multipart/form-data; boundary=b\r\n");
    expect(request.head).toContain("transfer-encoding: chunked\r\n");
    expect(Buffer.from(request.body, "latin1").includes(Buffer.from([0, 255]))).toBe(true);
  });

  it("goes both ways at once", async () => {
    let isAnswered = false;
    fixture.upstream.answerWith((socket) => {
      if (!isAnswered) socket.write(endless);
      isAnswered = true;
      const last = fixture.upstream.requests.at(-1) ?? "";
      if (last.includes("ping 1")) socket.write(wire("pong 1"));
      if (last.includes("ping 2")) socket.write(`${wire("pong 2")}0\r\n\r\n`);
    });
    const heard = Promise.withResolvers<void>();
    const answer = open(
      (async function* () {
        yield head(post);
        yield chunk("ping 1");
        await heard.promise;
        yield chunk("ping 2");
      })(),
    );
    expect((await headOf(answer)).status).toBe(200);
    expect(await textOf(answer)).toBe("pong 1");
    heard.resolve();
    expect((await restOf(answer)).body.toString()).toBe("pong 2");
  });

  it("passes each event on when it comes", async () => {
    let upstream: TLSSocket | undefined;
    fixture.upstream.answerWith((socket) => {
      upstream = socket;
      socket.write(
        `HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n${wire("data: 0\n\n")}`,
      );
    });
    const answer = open([head()]);
    await headOf(answer);
    for (const number of [0, 1, 2]) {
      expect(await textOf(answer)).toBe(`data: ${number}\n\n`);
      upstream?.write(number < 2 ? wire(`data: ${number + 1}\n\n`) : "0\r\n\r\n");
    }
    await restOf(answer);
  });

  it("gives the answer of an upstream that has not waited for the whole body", async () => {
    fixture.upstream.answerWith((socket) => socket.write("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"));
    let sent = 0;
    const answer = open(
      (async function* () {
        yield head(post);
        for (; sent < 10_000; sent += 1) yield chunk(Buffer.alloc(65_536));
      })(),
    );
    expect((await headOf(answer)).status).toBe(413);
    expect((await restOf(answer)).body.toString()).toBe("no");
    expect(await answer.next()).toMatchObject({ done: true });
    expect(sent, "and the rest of the body is not asked for").toBeLessThan(1000);
    expect((await headOf(open([head()]))).status, "the next request is well").toBe(413);
  });

  it("without a body is sent like a request of Forward", async () => {
    fixture.upstream.answerWith(ok("{}"));
    for (const [change, length] of [
      [post, "content-length: 0"],
      [{ method: "DELETE" }, ""],
    ] as const) {
      fixture.upstream.requests.length = 0;
      expect((await restOf(open([head(change)]))).body.toString()).toBe("{}");
      expect(received().head).not.toContain("transfer-encoding");
      expect(received().head).toContain(length);
    }
  });
});

describe("whoever is slow is waited for:", () => {
  it("a caller who reads slowly pauses the upstream", async () => {
    const total = 48 * 1024 * 1024;
    let poured = { bytes: 0 };
    fixture.upstream.answerWith((socket) => {
      poured = pour(socket, total);
    });
    const answer = open([head()]);
    await headOf(answer);
    const paused = await settled(() => poured.bytes);
    expect(paused).toBeGreaterThan(0);
    expect(paused).toBeLessThan(24 * 1024 * 1024);
    await textOf(answer);
    expect((await restOf(answer)).body.length + 65_536).toBeGreaterThan(total - 200_000);
    expect(poured.bytes).toBe(total);
  });

  it("an upstream that reads slowly pauses the caller", async () => {
    fixture.upstream.answerWith((socket) => socket.pause());
    let sent = 0;
    const answer = open(
      (async function* () {
        yield head(post);
        for (; sent < 800; sent += 1) yield chunk(Buffer.alloc(65_536));
      })(),
    );
    const first = headOf(answer);
    const paused = await settled(() => sent);
    expect(paused).toBeGreaterThan(0);
    expect(paused).toBeLessThan(400);
    fixture.upstream.answerWith((socket) => {
      if (fixture.upstream.requests.at(-1)?.endsWith("0\r\n\r\n")) socket.write(ok("all"));
    });
    for (const socket of fixture.upstream.sockets) socket.resume();
    expect((await first).status).toBe(200);
    expect((await restOf(answer)).body.toString()).toBe("all");
    expect(sent).toBe(800);
  });
});

describe("a stream ends early", () => {
  it("when its caller leaves: the upstream's connection is closed within 100 ms, even while it is paused", async () => {
    const tookMs: number[] = [];
    // The fastest of three counts: on a busy machine a process may not even run for that long.
    while (tookMs.length < 3) {
      let poured = { bytes: 0 };
      let closedMs = 0;
      fixture.upstream.answerWith((socket) => {
        poured = pour(socket, forever);
        socket.on("close", () => {
          closedMs = performance.now();
        });
      });
      const leaving = new AbortController();
      const answer = open([head()], { signal: leaving.signal });
      await headOf(answer);
      await settled(() => poured.bytes);
      const leftMs = performance.now();
      leaving.abort();
      expect(await failureOf(restOf(answer))).toMatch(/^CANCELLED/);
      await expect.poll(() => closedMs, { timeout: 3000, interval: 5 }).toBeGreaterThan(0);
      tookMs.push(closedMs - leftMs);
    }
    expect(Math.min(...tookMs)).toBeLessThan(100);
  });

  it("two hundred times without a trace", async () => {
    fixture.upstream.answerWith((socket) => void pour(socket, forever));
    for (let round = 0; round < 10; round += 1) {
      await Promise.all(
        Array.from({ length: 20 }, async () => {
          const leaving = new AbortController();
          const answer = open([head()], { signal: leaving.signal });
          await headOf(answer);
          await sleep(Math.random() * 50);
          leaving.abort();
          await failureOf(restOf(answer));
        }),
      );
    }
    await expect.poll(() => fixture.upstream.sockets.size, { timeout: 3000 }).toBe(0);
    fixture.upstream.answerWith((socket) => void pour(socket, 4 * 1024 * 1024));
    const bodies = await Promise.all(Array.from({ length: 20 }, () => restOf(open([head()]))));
    expect(bodies.map(({ body }) => body.length)).toEqual(bodies.map(() => 4 * 1024 * 1024));
  });

  it("when the account is revoked, with the reason", async () => {
    let isClosed = false;
    fixture.upstream.answerWith((socket) => {
      socket.write(`${endless}${wire("before")}`);
      socket.on("close", () => {
        isClosed = true;
      });
    });
    const answer = open([head()]);
    await headOf(answer);
    expect(await textOf(answer)).toBe("before");
    await fixture.watch.invalidate("apn_1");
    expect(await failureOf(restOf(answer))).toMatch(/^FAILED_PRECONDITION ACCOUNT_REVOKED/);
    await expect.poll(() => isClosed).toBe(true);
  });

  it("when the head does not come in time after the body, however long the body took", async () => {
    fixture.upstream.answerWith(() => undefined);
    const startMs = performance.now();
    const answer = open(
      (async function* () {
        yield head({ ...post, timeoutMs: 300 });
        for (let count = 0; count < 6; count += 1) {
          yield chunk("x");
          await sleep(150);
        }
      })(),
    );
    expect(await failureOf(headOf(answer))).toMatch(/^DEADLINE_EXCEEDED UPSTREAM_TIMEOUT/);
    expect(performance.now() - startMs).toBeGreaterThan(1100);
    expect(performance.now() - startMs).toBeLessThan(3000);
  });

  it("at the caller's deadline", async () => {
    let isClosed = false;
    fixture.upstream.answerWith((socket) => {
      socket.write(endless);
      const drip = setInterval(() => socket.write(wire("x")), 50);
      socket.on("close", () => {
        clearInterval(drip);
        isClosed = true;
      });
    });
    const answer = open([head()], { deadlineMs: Date.now() + 800 });
    await headOf(answer);
    expect(await failureOf(restOf(answer))).toMatch(/^DEADLINE_EXCEEDED/);
    await expect.poll(() => isClosed).toBe(true);
  });

  it("when the upstream breaks off", async () => {
    fixture.upstream.answerWith((socket) => socket.end(`${endless}${wire("half")}`));
    const answer = open([head()]);
    await headOf(answer);
    expect(await failureOf(restOf(answer))).toMatch(/^UNAVAILABLE UPSTREAM_RESET/);
  });
});

it.each<[string, Piece[], RegExp]>([
  ["nothing", [], /^INVALID_ARGUMENT INVALID_FIELD: head: is required/],
  ["a chunk first", [chunk("x")], /^INVALID_ARGUMENT INVALID_FIELD: head: is required/],
  ["a body in the head", [head({ ...post, body: Buffer.from("x") })], /^INVALID_ARGUMENT INVALID_FIELD: head.body/],
  ["a second head", [head(post), head(post)], /^INVALID_ARGUMENT INVALID_FIELD: chunk/],
  ["a second head after a chunk", [head(post), chunk("x"), head(post)], /^INVALID_ARGUMENT INVALID_FIELD: chunk/],
  ["a method that does not exist", [head({ method: "TRACE" })], /^INVALID_ARGUMENT INVALID_FIELD: method/],
  ["another host", [head({ url: "https://evil.example.com/" })], /^PERMISSION_DENIED HOST_NOT_ALLOWED/],
])("%s is refused, and no answer is given", async (_what, pieces, expected) => {
  fixture.upstream.answerWith(() => undefined);
  expect(await failureOf(headOf(open(pieces)))).toMatch(expected);
});
