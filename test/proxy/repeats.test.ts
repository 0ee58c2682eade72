// When Forward and ForwardStream send a request a second time, and when they must not: counted at a raw upstream.
import type { TLSSocket } from "node:tls";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { StatusError } from "#libs/errors.ts";
import type { ForwardRequest, ForwardStreamRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { forwardRequest, ok, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

let fixture: ProxyFixture;
beforeAll(async () => {
  fixture = await startProxyFixture();
});
afterAll(() => fixture.stop());
beforeEach(() => fixture.reset());

const options = () => ({ token: fixture.token, deadlineMs: Date.now() + 20_000 });

async function forward(change: Partial<ForwardRequest>): Promise<object> {
  return fixture.gateway.forward(forwardRequest(change), options()).catch(told);
}

async function stream(change: Partial<ForwardRequest>, ...chunks: readonly string[]): Promise<object> {
  async function* pieces() {
    yield { piece: { $case: "head", value: forwardRequest(change) } } as ForwardStreamRequest;
    for (const chunk of chunks) yield { piece: { $case: "chunk" as const, value: Buffer.from(chunk) } };
  }
  const answer = fixture.gateway.forwardStream(pieces(), options());
  let head: object = {};
  try {
    for await (const { piece } of answer) if (piece?.$case === "head") head = piece.value;
    return head;
  } catch (error) {
    return told(error);
  }
}

function told(error: unknown): object {
  if (error instanceof StatusError) return { reason: error.reason };
  throw error;
}

/** Breaks the first so many requests off, then answers. */
function breaking(times: number, breakOff: (socket: TLSSocket) => void): void {
  let left = times;
  fixture.upstream.answerWith((socket) => {
    if (left > 0) breakOff(socket);
    else socket.write(ok("{}"));
    left -= 1;
  });
}

const cut = (socket: TLSSocket) => void socket.destroy();

describe("a connection that breaks before a byte of the answer", () => {
  it.each(["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])("lets %s be sent once more", async (method) => {
    breaking(1, cut);
    expect(await forward({ method })).toMatchObject({ status: 200, attempts: 2 });
    expect(fixture.upstream.requests).toHaveLength(2);
  });

  it.each(["POST", "PATCH"])("does not let %s be sent again", async (method) => {
    breaking(1, cut);
    expect(await forward({ method, body: Buffer.from("x") })).toEqual({ reason: "UPSTREAM_RESET" });
    expect(await stream({ method: "POST" }), "in a stream neither").toMatchObject({ status: 200, attempts: 1 });
    expect(fixture.upstream.requests).toHaveLength(2);
  });

  it("a second time ends the call: two requests at most", async () => {
    breaking(5, cut);
    expect(await forward({})).toEqual({ reason: "UPSTREAM_RESET" });
    expect(await stream({})).toEqual({ reason: "UPSTREAM_RESET" });
    expect(fixture.upstream.requests).toHaveLength(4);
  });

  it("after it had been idle is the same to a GET", async () => {
    fixture.upstream.answerWith(ok("{}"));
    await forward({});
    breaking(1, cut);
    expect(await forward({})).toMatchObject({ status: 200, attempts: 2 });
    expect(fixture.upstream.requests).toHaveLength(3);
  });

  it("lets a stream be sent again that has no body, and no other", async () => {
    breaking(1, cut);
    expect(await stream({})).toMatchObject({ status: 200, attempts: 2 });
    breaking(1, cut);
    expect(await stream({ method: "PUT" })).toMatchObject({ status: 200, attempts: 2 });
    breaking(1, cut);
    fixture.upstream.requests.length = 0;
    expect(await stream({ method: "PUT" }, "body")).toEqual({ reason: "UPSTREAM_RESET" });
    expect(fixture.upstream.requests).toHaveLength(1);
  });
});

it("a connection that breaks within the answer lets nothing be sent again", async () => {
  breaking(1, (socket) => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"));
  expect(await forward({})).toEqual({ reason: "UPSTREAM_RESET" });
  breaking(1, (socket) => socket.end("HTTP/1.1 2"));
  expect(await forward({})).toEqual({ reason: "UPSTREAM_RESET" });
  expect(fixture.upstream.requests).toHaveLength(2);
});

describe("a connection that is not made is tried once more for every method, for nothing was sent", () => {
  let refused = 0;
  beforeEach(async () => {
    refused = 0;
    fixture.watch.connecting = {
      // biome-ignore lint/suspicious/noThenProperty: stands for a name that does not resolve at first
      then: (_resolve: unknown, reject: (error: Error) => void) => {
        refused += 1;
        fixture.watch.connecting = undefined;
        reject(new Error("no such name"));
      },
    } as unknown as Promise<void>;
    fixture.upstream.answerWith(ok("{}", "connection: close\r\n"));
    for (const socket of fixture.upstream.sockets) socket.destroy();
    await expect.poll(() => fixture.upstream.sockets.size).toBe(0);
  });

  it("with a body that is whole", async () => {
    expect(await forward({ method: "POST" })).toMatchObject({ status: 200, attempts: 1 });
    expect([refused, fixture.upstream.requests.length]).toEqual([1, 1]);
  });

  it("with a body that is streamed, of which the first chunk is kept", async () => {
    expect(await stream({ method: "POST" }, "one")).toMatchObject({ status: 200, attempts: 1 });
    expect(refused).toBe(1);
    await expect.poll(() => fixture.upstream.requests.join("")).toContain("\r\n\r\n3\r\none\r\n");
  });
});

describe("an upstream that takes its time", () => {
  it.each<[string, (socket: TLSSocket) => void]>([
    ["accepts and says nothing", () => undefined],
    [
      "drips its answer",
      (socket) => {
        socket.write("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
        const drip = setInterval(() => socket.write("x"), 40);
        socket.on("close", () => clearInterval(drip));
      },
    ],
    [
      "drips its head",
      (socket) => {
        socket.write("HTTP/1.1 200 OK\r\n");
        const drip = setInterval(() => socket.write("x-a: b\r\n"), 40);
        socket.on("close", () => clearInterval(drip));
      },
    ],
  ])("and %s is given up on time, once", async (_what, answer) => {
    fixture.upstream.answerWith(answer);
    const startMs = performance.now();
    expect(await forward({ timeoutMs: 600 })).toEqual({ reason: "UPSTREAM_TIMEOUT" });
    expect(performance.now() - startMs).toBeGreaterThan(550);
    expect(performance.now() - startMs).toBeLessThan(1500);
    expect(fixture.upstream.requests).toHaveLength(1);
  });

  it("to be connected to is given up on time, with nothing sent", async () => {
    for (const socket of fixture.upstream.sockets) socket.destroy();
    const never = Promise.withResolvers<void>();
    fixture.watch.connecting = never.promise;
    const startMs = performance.now();
    expect(await forward({ timeoutMs: 600 })).toEqual({ reason: "UPSTREAM_TIMEOUT" });
    expect(performance.now() - startMs).toBeLessThan(1500);
    never.resolve();
    expect(fixture.upstream.requests).toEqual([]);
  });
});
