// How fast ForwardStream passes bodies on, beside the least that could stand in its place (stream-pipe.ts), by turns. As in
// bench/proxy.ts callers come without TLS, both ways go to the upstream over TLS, and both middlemen have a core of their own; the
// other is for this process, which is caller and upstream of both. Several bodies at a time, each over a connection of its own: one
// alone would measure the wait for HTTP/2's window, which grpc-js keeps at 64 kB on a server.
import { mkdtemp, rm } from "node:fs/promises";
import { Agent, request as requestHttp } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createServer, type TLSSocket } from "node:tls";
import * as grpc from "@grpc/grpc-js";
import { streamingProxyDefinition } from "#libs/chunk-codec.ts";
import { serialize } from "#libs/message-bytes.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import {
  ForwardRequest,
  type ForwardStreamRequest,
  type ForwardStreamResponse,
} from "#proto/deputy/proxy/v1/proxy_service.ts";
import { pour } from "../test/support/tls-upstream.ts";
import { startNeighbours } from "./proxy-neighbours.ts";
import { type BenchProcess, pinThisProcess, startBenchProcess } from "./proxy-processes.ts";
import { makeBenchTls, readBenchTls } from "./proxy-tls.ts";
import { at } from "./quantiles.ts";

/** Which way a body goes: from the upstream or to it. */
export type Way = "answer" | "body";

const megabyte = 1024 * 1024;
const [rounds, roundMegabytes, warmMegabytes, bodiesAtATime] = [9, 100, 64, 4];
const block = Buffer.alloc(65_536, 1);

/** Megabytes a second of both; ratios by the clock and by the processor time that each middleman used, medians of rounds. */
export async function measureSpeed() {
  const directory = await mkdtemp(join(tmpdir(), "deputy-stream-"));
  await makeBenchTls(directory);
  const upstream = await startUpstream(directory);
  const neighbours = await startNeighbours(directory, upstream.port);
  const processes: BenchProcess[] = [];
  await pinThisProcess("load");
  try {
    const { accountPort, vaultPort, token } = neighbours;
    const told = { kind: "proxy", directory, upstreamPort: upstream.port, accountPort, vaultPort, proxyPort: 0 };
    const proxy = await startBenchProcess("proxy-contender.ts", "server", [JSON.stringify(told)]);
    const pipe = await startBenchProcess("stream-pipe.ts", "server", [directory, String(upstream.port)]);
    processes.push(proxy, pipe);
    const callers = (make: () => Caller) => Array.from({ length: bodiesAtATime }, make);
    const throughProxy = callers(() => proxyCaller(proxy.port, token));
    const throughPipe = callers(() => pipeCaller(pipe.port));
    const figures = [];
    for (const way of ["answer", "body"] as const) {
      const send = (through: readonly Caller[], megabytes: number) => {
        const bytes = (megabytes * megabyte) / bodiesAtATime;
        upstream.expect(way, bytes);
        return timed(() => Promise.all(through.map((call) => call(way, bytes))));
      };
      await send(throughProxy, warmMegabytes);
      await send(throughPipe, warmMegabytes);
      const samples: Sample[] = [];
      for (let round = 0; round < rounds; round += 1) {
        const [proxyStart, pipeStart] = [await proxy.cpu(), await pipe.cpu()];
        const seconds = {
          proxy: await send(throughProxy, roundMegabytes),
          pipe: await send(throughPipe, roundMegabytes),
        };
        const cpu = { proxy: (await proxy.cpu()) - proxyStart, pipe: (await pipe.cpu()) - pipeStart };
        samples.push({ seconds, toPipe: seconds.pipe / seconds.proxy, toPipeByCpu: cpu.pipe / cpu.proxy });
      }
      const spread = (of: (sample: Sample) => number) => [0.25, 0.5, 0.75].map((share) => at(samples.map(of), share));
      figures.push({
        way,
        proxyMegabytesPerSecond: spread(({ seconds }) => roundMegabytes / seconds.proxy)[1] ?? 0,
        pipeMegabytesPerSecond: spread(({ seconds }) => roundMegabytes / seconds.pipe)[1] ?? 0,
        toPipe: spread(({ toPipe }) => toPipe),
        toPipeByCpu: spread(({ toPipeByCpu }) => toPipeByCpu),
      });
    }
    return figures;
  } finally {
    for (const { stop } of processes) stop();
    await pinThisProcess("anywhere");
    await neighbours.stop();
    upstream.stop();
    await rm(directory, { recursive: true });
  }
}

/** Sends one body through, one way or the other, and waits for its end. */
type Caller = (way: Way, bytes: number) => Promise<void>;

interface Sample {
  readonly seconds: { readonly proxy: number; readonly pipe: number };
  readonly toPipe: number;
  readonly toPipeByCpu: number;
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await work();
  return (performance.now() - startMs) / 1000;
}

/** Gives so many bytes to every request, or takes whatever comes. */
async function startUpstream(directory: string) {
  const { certificate, key } = readBenchTls(directory, "upstream");
  let answer = { way: "answer" as Way, bytes: 0 };
  const sockets = new Set<TLSSocket>();
  const server = createServer({ cert: certificate ?? "", key: String(key) }, (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    let end: Buffer = Buffer.alloc(0);
    socket.on("data", (chunk: Buffer) => {
      end = Buffer.concat([end, chunk.subarray(-lastChunk.length)]).subarray(-lastChunk.length);
      if (answer.way === "answer") pour(socket, answer.bytes);
      else if (end.equals(lastChunk)) socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as AddressInfo).port,
    expect(way: Way, bytes: number) {
      answer = { way, bytes };
    },
    stop() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

const lastChunk = Buffer.from("0\r\n\r\n");

function* blocks(bytes: number): Generator<Buffer> {
  for (let sent = 0; sent < bytes; sent += block.length) yield block;
}

function requireAll(way: Way, got: number, wanted: number): void {
  if (way === "answer" && got !== wanted) throw new Error(`${got} bytes came of ${wanted}`);
}

function proxyCaller(port: number, token: string): Caller {
  const { requestType, responseType } = streamingProxyDefinition.methods.forwardStream;
  const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
    "grpc-node.flow_control_window": 256 * 1024,
    "grpc.use_local_subchannel_pool": 1,
  });
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);

  function* messages(way: Way, bytes: number): Generator<ForwardStreamRequest> {
    const method = way === "answer" ? "GET" : "POST";
    const whose = { environment: Environment.DEVELOPMENT, externalUserId: "user-1", accountId: "apn_1" };
    yield { piece: { $case: "head", value: ForwardRequest.fromPartial({ ...whose, method, url: "/body" }) } };
    if (way === "body") for (const value of blocks(bytes)) yield { piece: { $case: "chunk", value } };
  }

  return async (way, bytes) => {
    const call = client.makeBidiStreamRequest(
      "/deputy.proxy.v1.ProxyService/ForwardStream",
      (message: ForwardStreamRequest) => serialize(requestType, message),
      (received: Buffer) => responseType.decode(received) as ForwardStreamResponse,
      metadata,
      { deadline: Date.now() + 600_000 },
    );
    Readable.from(messages(way, bytes)).pipe(call as unknown as NodeJS.WritableStream);
    let got = 0;
    for await (const { piece } of call as AsyncIterable<ForwardStreamResponse>) {
      if (piece?.$case === "chunk") got += piece.value.length;
    }
    requireAll(way, got, bytes);
  };
}

function pipeCaller(port: number): Caller {
  const agent = new Agent({ keepAlive: true });
  return async (way, bytes) => {
    const method = way === "answer" ? "GET" : "POST";
    const outgoing = requestHttp({ host: "127.0.0.1", port, path: "/body", method, agent });
    const response = new Promise<AsyncIterable<Buffer>>((resolve, reject) => {
      outgoing.on("response", resolve).on("error", reject);
    });
    if (way === "body") await pipeline(Readable.from(blocks(bytes)), outgoing);
    else outgoing.end();
    let got = 0;
    for await (const chunk of await response) got += chunk.length;
    requireAll(way, got, bytes);
  };
}
