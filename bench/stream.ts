// `npm run bench:stream`: bodies through ForwardStream of a true proxy process, one way and the other, beside Node's own HTTPS
// server and client with a pipe between them (stream-pipe.ts), by turns. What has to hold, beside no failure:
//
//   - at least 0.65 of the pipe's megabytes a second, by the median of the rounds' ratios; by processor time as well it is told
//   - a body of 100 MB takes 100 MB of memory at most, and 5 GB no more than 64 MiB (`--megabytes=N` in its place)
//   - after 200 streams whose callers left, as much goes through as before
//
// Caller and upstream are this one process, the same for both sides. Keeps its figures in bench/results/stream.json. Linux alone
// tells a process's memory and time.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { Agent, request as requestHttps } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { parseArgs } from "node:util";
import type { ForwardStreamRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { forwardRequest, startProxyFixture } from "../test/proxy/proxy-fixture.ts";
import { startProxyProcess } from "../test/support/proxy-process.ts";
import { testTls } from "../test/support/tls.ts";
import { drink, pour } from "../test/support/tls-upstream.ts";
import { machine } from "./machine.ts";
import { startBenchProcess } from "./proxy-processes.ts";
import { at } from "./quantiles.ts";

type Way = "answer" | "body";

const { megabytes } = parseArgs({ options: { megabytes: { type: "string", default: "5120" } } }).values;
const megabyte = 1024 * 1024;
const [rounds, roundMegabytes, cancelled] = [7, 100, 200];
const [leastOfPipe, leastAfterCancelled, mostForOne, mostGrown] = [0.65, 0.8, 100, 64];
const block = Buffer.alloc(65_536, 1);

const fixture = await startProxyFixture();
const upstreamUrl = `https://localhost:${fixture.upstream.port}`;
const proxy = await startProxyProcess(fixture);
fixture.answers = { account: {}, lease: { baseUrl: upstreamUrl } };
const directory = mkdtempSync(join(tmpdir(), "deputy-pipe-"));
const pipe = await startPipe();
const agent = new Agent({ keepAlive: true, ca: (await testTls("sandbox")).ca });

try {
  for (const way of ["answer", "body"] as const) {
    await throughProxy(way, 64);
    await throughPipe(way, 64);
  }
  const figures = { answer: await compare("answer"), body: await compare("body") };
  console.table(figures);
  const before = await proxyRounds();
  await leaveStreams();
  const afterCancelled = Math.round((at(await proxyRounds(), 0.5) / at(before, 0.5)) * 100) / 100;
  const grown = { one: await grownBy("answer", roundMegabytes), many: await grownBy("answer", Number(megabytes)) };
  const grownByBody = await grownBy("body", Number(megabytes));
  const memory = { megabytes: Number(megabytes), grownBy100: grown.one, grownByAnswer: grown.many, grownByBody };
  console.table({ afterCancelled, ...memory });
  const verdicts: readonly (readonly [text: string, holds: boolean])[] = [
    [`answers: at least ${leastOfPipe} of the pipe`, figures.answer.toPipe >= leastOfPipe],
    [`bodies: at least ${leastOfPipe} of the pipe`, figures.body.toPipe >= leastOfPipe],
    [
      `at least ${leastAfterCancelled} of it after ${cancelled} streams were left`,
      afterCancelled >= leastAfterCancelled,
    ],
    [`a body of ${roundMegabytes} MB takes ${mostForOne} MB at most`, grown.one <= mostForOne],
    [`${megabytes} MB take ${mostGrown} MiB at most`, Math.max(grown.many, grownByBody) <= mostGrown],
  ];
  for (const [text, holds] of verdicts) console.log(`${holds ? "holds" : "DOES NOT HOLD"}: ${text}`);
  const kept = { machine: machine(), figures, afterCancelled, memory, verdicts: Object.fromEntries(verdicts) };
  await writeFile(new URL("results/stream.json", import.meta.url), `${JSON.stringify(kept, undefined, 2)}\n`);
  if (verdicts.some(([, holds]) => !holds)) process.exitCode = 1;
} finally {
  pipe.stop();
  agent.destroy();
  rmSync(directory, { recursive: true });
  await proxy.stop();
  await fixture.stop();
}

async function startPipe() {
  const { certificate = "", key } = await testTls("sandbox");
  const file = (name: string, text: string) => {
    writeFileSync(join(directory, name), text, { mode: 0o600 });
    return join(directory, name);
  };
  const files = { certificateFile: file("certificate.pem", certificate), keyFile: file("key.pem", key) };
  const options = { upstream: upstreamUrl, ...files, upstreamCaFile: file("upstream-ca.pem", fixture.upstream.ca) };
  return startBenchProcess("stream-pipe.ts", "anywhere", [JSON.stringify(options)]);
}

function answerWith(way: Way, bytes: number): void {
  fixture.upstream.answerWith(way === "answer" ? (socket) => void pour(socket, bytes) : drink(fixture.upstream));
}

async function* pieces(way: Way, bytes: number): AsyncGenerator<ForwardStreamRequest> {
  const method = way === "answer" ? "GET" : "POST";
  yield { piece: { $case: "head", value: forwardRequest({ method }) } } as ForwardStreamRequest;
  if (way === "body") for (const chunk of blocks(bytes)) yield { piece: { $case: "chunk", value: chunk } };
}

function* blocks(bytes: number): Generator<Buffer> {
  for (let sent = 0; sent < bytes; sent += block.length) yield block;
}

/** Gives the seconds that it took. */
async function throughProxy(way: Way, size: number): Promise<number> {
  const bytes = size * megabyte;
  answerWith(way, bytes);
  const startMs = performance.now();
  const call = { token: fixture.token, deadlineMs: Date.now() + 3_500_000 };
  let answered = 0;
  for await (const { piece } of proxy.gateway.forwardStream(pieces(way, bytes), call)) {
    if (piece?.$case === "chunk") answered += piece.value.length;
    // Seen by the caller alone; nothing of the request is kept.
    fixture.upstream.requests.length = 0;
  }
  if (way === "answer" && answered !== bytes) throw new Error(`${answered} bytes came of ${bytes}`);
  return (performance.now() - startMs) / 1000;
}

async function throughPipe(way: Way, size: number): Promise<number> {
  const bytes = size * megabyte;
  answerWith(way, bytes);
  const startMs = performance.now();
  const method = way === "answer" ? "GET" : "POST";
  const outgoing = requestHttps({
    host: "localhost",
    port: pipe.port,
    path: "/x",
    method,
    agent,
    servername: "localhost",
  });
  const response = new Promise<AsyncIterable<Buffer>>((resolve, reject) => {
    outgoing.on("response", resolve).on("error", reject);
  });
  if (way === "body") await pipeline(Readable.from(blocks(bytes)), outgoing);
  else outgoing.end();
  let answered = 0;
  for await (const chunk of await response) {
    answered += chunk.length;
    fixture.upstream.requests.length = 0;
  }
  if (way === "answer" && answered !== bytes) throw new Error(`${answered} bytes came of ${bytes} through the pipe`);
  return (performance.now() - startMs) / 1000;
}

/** Both by turns; ratios are those of megabytes a second, and of megabytes for each second of their own processor time. */
async function compare(way: Way) {
  const ratios: { readonly wall: number; readonly cpu: number }[] = [];
  const perSecond = { proxy: [] as number[], pipe: [] as number[] };
  for (let round = 0; round < rounds; round += 1) {
    const proxyStart = proxy.cpuSeconds();
    const proxySeconds = await throughProxy(way, roundMegabytes);
    const [proxyEnd, pipeStart] = [proxy.cpuSeconds(), await pipe.cpu()];
    const pipeSeconds = await throughPipe(way, roundMegabytes);
    const pipeCpu = ((await pipe.cpu()) - pipeStart) / 1e6;
    perSecond.proxy.push(roundMegabytes / proxySeconds);
    perSecond.pipe.push(roundMegabytes / pipeSeconds);
    ratios.push({ wall: pipeSeconds / proxySeconds, cpu: pipeCpu / (proxyEnd - proxyStart) });
  }
  const quartiles = (values: readonly number[]) => [0.25, 0.75].map((share) => at(values, share)).join("-");
  const wall = ratios.map((ratio) => ratio.wall);
  return {
    proxyMegabytesPerSecond: at(perSecond.proxy, 0.5),
    pipeMegabytesPerSecond: at(perSecond.pipe, 0.5),
    toPipe: at(wall, 0.5),
    quartiles: quartiles(wall),
    toPipeByCpu: at(
      ratios.map((ratio) => ratio.cpu),
      0.5,
    ),
  };
}

async function proxyRounds(): Promise<number[]> {
  const perSecond: number[] = [];
  for (let round = 0; round < rounds; round += 1)
    perSecond.push(roundMegabytes / (await throughProxy("answer", roundMegabytes)));
  return perSecond;
}

/** Callers who leave in the middle of an answer that has no end. */
async function leaveStreams(): Promise<void> {
  answerWith("answer", 2 ** 40);
  for (let left = 0; left < cancelled; left += 10) {
    const calls = Array.from({ length: 10 }, async () => {
      const call = { token: fixture.token, deadlineMs: Date.now() + 60_000 };
      for await (const { piece } of proxy.gateway.forwardStream(pieces("answer", 0), call)) {
        if (piece?.$case === "chunk") break;
      }
    });
    await Promise.all(calls);
  }
}

/** By how many megabytes the proxy's memory grew. */
async function grownBy(way: Way, size: number): Promise<number> {
  const startBytes = proxy.residentBytes();
  let mostBytes = startBytes;
  const look = setInterval(() => {
    mostBytes = Math.max(mostBytes, proxy.residentBytes());
  }, 50);
  await throughProxy(way, size);
  clearInterval(look);
  return Math.round(((mostBytes - startBytes) / megabyte) * 10) / 10;
}
