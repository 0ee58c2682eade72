// Streamed exchanges against a raw TLS server: what bounds their silence, and what a body left behind costs.
import { PassThrough, Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type Egress, type EgressStreamRequest, openEgress } from "#libs/egress.ts";
import { EgressError } from "#libs/egress-error.ts";
import { pour, startTlsUpstream, type TlsUpstream, upstreamHost } from "../support/tls-upstream.ts";

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

function open(change: Partial<EgressStreamRequest> = {}) {
  const url = new URL(`https://${upstreamHost}:${upstream.port}/v1/things`);
  return egress.open({ url, method: "GET", headers: [], totalTimeoutMs: 10_000, ...change });
}

async function failureOf(work: Promise<unknown>): Promise<string> {
  const error = await work.catch((reason: unknown) => reason);
  return error instanceof EgressError ? `${error.kind} sent ${error.sent}: ${error.message}` : `no failure: ${error}`;
}

const chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

describe("silence", () => {
  it("after the request's last byte ends it at the head's limit, and before at the idle limit", async () => {
    upstream.answerWith(() => undefined);
    expect(await failureOf(open({ headTimeoutMs: 150, idleTimeoutMs: 5000 }))).toBe(
      "timeout sent true: The upstream did not answer within 150 ms.",
    );
    const body = new PassThrough();
    body.write("begun");
    expect(await failureOf(open({ method: "POST", body, headTimeoutMs: 5000, idleTimeoutMs: 150 }))).toBe(
      "timeout sent true: No byte moved for 150 ms.",
    );
    expect(body.destroyed).toBe(true);
  });

  it("of the upstream within the answer ends it at the idle limit, and a byte now and then does not", async () => {
    upstream.answerWith((socket) => {
      socket.write(chunked);
      let left = 6;
      const drip = setInterval(() => {
        if (left-- > 0) socket.write("1\r\nx\r\n");
        else clearInterval(drip);
      }, 100);
    });
    const { body } = await open({ idleTimeoutMs: 300 });
    const startMs = performance.now();
    expect(await failureOf(body.toArray())).toBe("timeout sent true: No byte moved for 300 ms.");
    expect(performance.now() - startMs).toBeGreaterThan(800);
    await expect.poll(() => upstream.sockets.size).toBe(0);
  });

  it("of a reader who stops is silence, too", async () => {
    upstream.answerWith((socket) => void pour(socket, 2 ** 40));
    const { body } = await open({ idleTimeoutMs: 300 });
    await expect.poll(() => body.destroyed, { timeout: 5000 }).toBe(true);
    expect(body.errored).toMatchObject({ kind: "timeout" });
  });
});

it("steady bytes end at the total deadline", async () => {
  upstream.answerWith((socket) => {
    socket.write(chunked);
    const drip = setInterval(() => socket.write("1\r\nx\r\n"), 40);
    socket.on("close", () => clearInterval(drip));
  });
  const { body } = await open({ totalTimeoutMs: 600, idleTimeoutMs: 300 });
  expect(await failureOf(body.toArray())).toMatch(/^timeout/);
});

it("an answer that is destroyed unread closes its connection, and two hundred of them leave the pool as able as before", async () => {
  upstream.answerWith((socket) => void pour(socket, 2 ** 40));
  for (let round = 0; round < 20; round += 1) {
    const answers = await Promise.all(Array.from({ length: 10 }, () => open()));
    await sleep(20);
    for (const { body } of answers) body.destroy();
  }
  await expect.poll(() => upstream.sockets.size, { timeout: 3000 }).toBe(0);
  upstream.answerWith((socket) => void pour(socket, 1_048_576));
  expect(Buffer.concat(await (await open()).body.toArray()).length).toBe(1_048_576);
});

it("an answer without a body, and one read to its end, leave their connection to the next", async () => {
  upstream.answerWith("HTTP/1.1 204 No Content\r\n\r\n");
  const before = upstream.connections();
  expect(await (await open()).body.toArray()).toEqual([]);
  upstream.answerWith(`${chunked}2\r\nok\r\n0\r\nx-sum: 1\r\nkeep-alive: 5\r\n\r\n`);
  await sleep(50);
  const { body, trailers } = await open();
  expect(Buffer.concat(await body.toArray()).toString()).toBe("ok");
  expect(trailers()).toEqual([["x-sum", "1"]]);
  await sleep(50);
  await (await open()).body.toArray();
  expect(upstream.connections() - before).toBe(1);
});

it("a body that fails breaks the request off, so that the upstream does not take half for the whole", async () => {
  upstream.answerWith(() => undefined);
  const body = Readable.from(
    (async function* () {
      yield "half";
      await sleep(100);
      throw new Error("the caller's side broke");
    })(),
  );
  expect(await failureOf(open({ method: "POST", body }))).toMatch(/^reset sent true/);
  await expect.poll(() => upstream.sockets.size).toBe(0);
  expect(upstream.requests.join("")).not.toContain("0\r\n\r\n");
});
