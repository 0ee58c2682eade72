// `npm run bench:stream`: bodies through ForwardStream, one way and the other. What has to hold, beside no failure:
//
//   - at least 0.65 of a pipe's megabytes a second (stream-speed.ts), by the median of the rounds' ratios
//   - a body of 100 MB takes 100 MB of memory at most, and 5 GB no more than 64 MiB (`--megabytes=N` in its place)
//   - after 200 streams whose callers left, as much goes through as before
//
// The last two on a true proxy process, mutual TLS and all. Keeps its figures in bench/results/stream.json. Linux alone tells a
// process's memory and time.
import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import type { ForwardStreamRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { forwardRequest, startProxyFixture } from "../test/proxy/proxy-fixture.ts";
import { startProxyProcess } from "../test/support/proxy-process.ts";
import { drink, pour } from "../test/support/tls-upstream.ts";
import { machine } from "./machine.ts";
import { at } from "./quantiles.ts";
import { measureSpeed, type Way } from "./stream-speed.ts";

const { megabytes } = parseArgs({ options: { megabytes: { type: "string", default: "5120" } } }).values;
const megabyte = 1024 * 1024;
const [rounds, roundMegabytes, cancelled] = [7, 100, 200];
const [leastOfPipe, leastAfterCancelled, mostForOne, mostGrown] = [0.65, 0.8, 100, 64];
const block = Buffer.alloc(65_536, 1);

const speed = await measureSpeed();
console.table(speed);

const fixture = await startProxyFixture();
const upstreamUrl = `https://localhost:${fixture.upstream.port}`;
const proxy = await startProxyProcess(fixture);
fixture.answers = { account: {}, lease: { baseUrl: upstreamUrl } };

try {
  for (const way of ["answer", "body"] as const) await throughProxy(way, 64);
  const before = await proxyRounds();
  await leaveStreams();
  const afterCancelled = Math.round((at(await proxyRounds(), 0.5) / at(before, 0.5)) * 100) / 100;
  const grown = { one: await grownBy("answer", roundMegabytes), many: await grownBy("answer", Number(megabytes)) };
  const grownByBody = await grownBy("body", Number(megabytes));
  const memory = { megabytes: Number(megabytes), grownBy100: grown.one, grownByAnswer: grown.many, grownByBody };
  console.table({ afterCancelled, ...memory });
  const verdicts: readonly (readonly [text: string, holds: boolean])[] = [
    ...speed.map(
      ({ way, toPipe }) => [`${way}: at least ${leastOfPipe} of the pipe`, (toPipe[1] ?? 0) >= leastOfPipe] as const,
    ),
    [
      `at least ${leastAfterCancelled} of it after ${cancelled} streams were left`,
      afterCancelled >= leastAfterCancelled,
    ],
    [`a body of ${roundMegabytes} MB takes ${mostForOne} MB at most`, grown.one <= mostForOne],
    [`${megabytes} MB take ${mostGrown} MiB at most`, Math.max(grown.many, grownByBody) <= mostGrown],
  ];
  for (const [text, holds] of verdicts) console.log(`${holds ? "holds" : "DOES NOT HOLD"}: ${text}`);
  const kept = { machine: machine(), speed, afterCancelled, memory, verdicts: Object.fromEntries(verdicts) };
  await writeFile(new URL("results/stream.json", import.meta.url), `${JSON.stringify(kept, undefined, 2)}\n`);
  if (verdicts.some(([, holds]) => !holds)) process.exitCode = 1;
} finally {
  await proxy.stop();
  await fixture.stop();
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
