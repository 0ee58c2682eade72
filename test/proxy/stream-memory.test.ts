// An eighth of a gigabyte through a true proxy process, each way, in memory that does not grow with it.
import { afterAll, beforeAll, expect, it } from "vitest";
import type { ForwardStreamRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { type ProxyProcess, startProxyProcess } from "../support/proxy-process.ts";
import { drink, pour } from "../support/tls-upstream.ts";
import { forwardRequest, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

let fixture: ProxyFixture;
let proxy: ProxyProcess;
beforeAll(async () => {
  fixture = await startProxyFixture();
  proxy = await startProxyProcess(fixture);
  fixture.answers = { account: {}, lease: { baseUrl: `https://localhost:${fixture.upstream.port}` } };
});
afterAll(async () => {
  await proxy.stop();
  await fixture.stop();
});

const megabyte = 1024 * 1024;
const totalBytes = 128 * megabyte;
const block = Buffer.alloc(65_536, 1);

async function* request(method: string, bytes: number): AsyncGenerator<ForwardStreamRequest> {
  yield { piece: { $case: "head", value: forwardRequest({ method }) } } as ForwardStreamRequest;
  for (let sent = 0; sent < bytes; sent += block.length) yield { piece: { $case: "chunk", value: block } };
}

/** Sends a body and takes the answer: how long it was, and by how much the process grew. */
async function through(method: string, bytes: number): Promise<{ answeredBytes: number; grownBytes: number }> {
  const options = { token: fixture.token, deadlineMs: Date.now() + 240_000 };
  const beforeBytes = proxy.residentBytes();
  let answeredBytes = 0;
  let grownBytes = 0;
  for await (const { piece } of proxy.gateway.forwardStream(request(method, bytes), options)) {
    if (piece?.$case !== "chunk") continue;
    answeredBytes += piece.value.length;
    grownBytes = Math.max(grownBytes, proxy.residentBytes() - beforeBytes);
  }
  return { answeredBytes, grownBytes: Math.max(grownBytes, proxy.residentBytes() - beforeBytes) };
}

// Where memory is told by /proc. The first stream makes the process's pools and compiled code, which are not its content.
it.skipIf(process.platform !== "linux")(
  "an answer and a body of 128 MiB take less than 64 MiB",
  async () => {
    fixture.upstream.answerWith((socket) => void pour(socket, 16 * megabyte));
    await through("GET", 0);
    fixture.upstream.answerWith((socket) => void pour(socket, totalBytes));
    const answer = await through("GET", 0);
    expect(answer.answeredBytes).toBe(totalBytes);
    expect(answer.grownBytes).toBeLessThan(64 * megabyte);
    fixture.upstream.answerWith(drink(fixture.upstream));
    const body = await through("POST", totalBytes);
    expect(body.answeredBytes).toBeGreaterThan(0);
    expect(body.grownBytes).toBeLessThan(64 * megabyte);
  },
  300_000,
);
