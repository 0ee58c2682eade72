// `npm run bench:stream`: bodies through ForwardStream of a true proxy process, one way and the other. What has to hold: its
// memory does not grow with them, by 64 MiB at most for 5 GB. How fast it goes is told as bytes for each second of the proxy's
// own processor time, because the caller and the upstream share the machine. `--megabytes=N` changes the 5,120 of each way.
// Keeps its figures in bench/results/stream.json. Linux alone tells a process's memory and time.
import { writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import type { ForwardStreamRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { forwardRequest, startProxyFixture } from "../test/proxy/proxy-fixture.ts";
import { startProxyProcess } from "../test/support/proxy-process.ts";
import { drink, pour } from "../test/support/tls-upstream.ts";

const { megabytes } = parseArgs({ options: { megabytes: { type: "string", default: "5120" } } }).values;
const megabyte = 1024 * 1024;
const totalBytes = Number(megabytes) * megabyte;
const mostGrownBytes = 64 * megabyte;
const block = Buffer.alloc(65_536, 1);

const fixture = await startProxyFixture();
const proxy = await startProxyProcess(fixture);
fixture.answers = { account: {}, lease: { baseUrl: `https://localhost:${fixture.upstream.port}` } };

async function* request(method: string, bytes: number): AsyncGenerator<ForwardStreamRequest> {
  yield { piece: { $case: "head", value: forwardRequest({ method }) } } as ForwardStreamRequest;
  for (let sent = 0; sent < bytes; sent += block.length) yield { piece: { $case: "chunk", value: block } };
}

interface Figures {
  readonly way: string;
  readonly megabytes: number;
  readonly seconds: number;
  readonly megabytesPerSecond: number;
  readonly megabytesPerProxyCpuSecond: number;
  readonly grownMegabytes: number;
}

async function measure(way: "answer" | "body", bytes: number): Promise<Figures> {
  const { upstream, token } = fixture;
  upstream.answerWith(way === "answer" ? (socket) => void pour(socket, bytes) : drink(upstream));
  const [startMs, startCpu, startBytes] = [performance.now(), proxy.cpuSeconds(), proxy.residentBytes()];
  let mostBytes = startBytes;
  const look = setInterval(() => {
    mostBytes = Math.max(mostBytes, proxy.residentBytes());
  }, 50);
  const pieces = way === "answer" ? request("GET", 0) : request("POST", bytes);
  let answered = 0;
  for await (const { piece } of proxy.gateway.forwardStream(pieces, { token, deadlineMs: Date.now() + 3_500_000 })) {
    if (piece?.$case === "chunk") answered += piece.value.length;
    // Seen by the caller alone; nothing of the request is kept.
    upstream.requests.length = 0;
  }
  clearInterval(look);
  if (way === "answer" && answered !== bytes) throw new Error(`${answered} bytes came of ${bytes}`);
  const seconds = (performance.now() - startMs) / 1000;
  const round = (value: number) => Math.round(value * 10) / 10;
  return {
    way,
    megabytes: bytes / megabyte,
    seconds: round(seconds),
    megabytesPerSecond: round(bytes / megabyte / seconds),
    megabytesPerProxyCpuSecond: round(bytes / megabyte / (proxy.cpuSeconds() - startCpu)),
    grownMegabytes: round((mostBytes - startBytes) / megabyte),
  };
}

try {
  // The first stream makes the process's pools and compiled code.
  await measure("answer", 32 * megabyte);
  const figures = [await measure("answer", totalBytes), await measure("body", totalBytes)];
  console.table(figures);
  const machine = { platform: process.platform, node: process.version, parallelism: availableParallelism() };
  const file = new URL("results/stream.json", import.meta.url);
  await writeFile(file, `${JSON.stringify({ machine, figures }, undefined, 2)}\n`);
  if (figures.some(({ grownMegabytes }) => grownMegabytes * megabyte > mostGrownBytes)) {
    console.error(`the proxy grew by more than ${mostGrownBytes / megabyte} MiB`);
    process.exitCode = 1;
  }
} finally {
  await proxy.stop();
  await fixture.stop();
}
