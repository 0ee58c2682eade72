// `npm run bench:proxy` (`-- --quick` for a look): what the proxy costs, beside what else could stand in its place. In one run,
// in short segments by turns, so that a machine that gets slower gets slower for all; what counts are ratios, by their median and
// quartiles over the rounds. One upstream for all: raw TLS with ready answers of 100 B, 10 KB and 1 MB.
//
//   a   straight: undici to the upstream, from the load's own process
//   b   bare: gRPC in through the same adapter, one header put in, undici out, nothing else
//   c   the proxy with everything on, its accounts in use; d   each request the first of its account
//   2c  two proxy processes, clients balancing between them, on the cores that load and upstream need as well
//   e   nginx with one header put in; f   express and axios; g   the gateway's REST proxy, before c
//   b tls, c tls   the same with mutual TLS
//
// The neighbours (account service, vault) are stand-ins in this process. Ends with status 1 when a request failed, or when c is
// below 0.70 of b. Keeps the tables and the machine in bench/results/proxy.json. ForwardStream's throughput is not measured here.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { availableParallelism, cpus, loadavg, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { type Contender, startContenders } from "./proxy-contenders.ts";
import type { LoadOrder, LoadResult } from "./proxy-load.ts";
import { startNeighbours } from "./proxy-neighbours.ts";
import { type BenchProcess, startBenchProcess } from "./proxy-processes.ts";
import { type Segment, summarize, type Table, verdicts } from "./proxy-summary.ts";
import { makeBenchTls } from "./proxy-tls.ts";

const isQuick = process.argv.includes("--quick");
const rounds = isQuick ? 3 : 8;
const segmentMs = isQuick ? 400 : 500;
const sizes = isQuick ? [100] : [100, 10_240, 1_048_576];
const inFlights = [1, 16, 64];
// Before anything counts: compiled code, open connections, leases in hand.
const warmUp = { inFlight: 16, maxRequests: 30_000, durationMs: isQuick ? 4_000 : 20_000 };

const directory = await mkdtemp(join(tmpdir(), "deputy-bench-"));
const ends: (() => unknown)[] = [];
try {
  await makeBenchTls(directory);
  const upstream = await startBenchProcess("proxy-upstream.ts", "load", [directory]);
  ends.push(upstream.stop);
  const neighbours = await startNeighbours(directory, upstream.port);
  ends.push(() => neighbours.stop());
  const load = await startBenchProcess("proxy-load.ts", "load", [directory]);
  ends.push(load.stop);
  const sides = (_size: number, inFlight: number) => !isQuick || inFlight === 16;
  const { contenders, left } = await startContenders(directory, upstream.port, neighbours, sides);
  for (const server of new Set(contenders.flatMap(({ servers }) => servers))) ends.push(server.stop);
  for (const { order } of contenders) await load.ask<LoadResult>({ ...order(100), size: 100, ...warmUp });

  const vaultCallsPerThousand = await countVaultCalls(load, contenders);
  const tables: Table[] = [];
  for (const size of sizes) {
    for (const inFlight of inFlights) {
      const taking = contenders.filter(({ takesPart }) => takesPart(size, inFlight));
      const segments = await measure(load, taking, size, inFlight);
      tables.push(summarize(size, inFlight, segments));
    }
  }
  const result = {
    machine: `${cpus()[0]?.model ?? "?"}, ${availableParallelism()} cores, ${Math.round(totalmem() / 2 ** 30)} GiB`,
    load: loadavg().map((value) => Number(value.toFixed(1))),
    node: process.version,
    isQuick,
    left,
    vaultCallsPerThousand,
    tables,
  };
  for (const { size, inFlight, rows } of tables) {
    console.log(`\n${size} B, ${inFlight} in flight`);
    console.table(rows);
  }
  for (const reason of left) console.log(`left out: ${reason}`);
  console.log(`vault calls per 1,000 warm requests: ${vaultCallsPerThousand}`);
  const found = verdicts(tables, vaultCallsPerThousand);
  for (const { text, holds } of found) console.log(`${holds}: ${text}`);
  if (!isQuick) {
    const kept = { ...result, verdicts: found };
    await writeFile(join(import.meta.dirname, "results/proxy.json"), `${JSON.stringify(kept, undefined, 2)}\n`);
  }
  if (found.some(({ holds }) => holds === "BELOW THE FLOOR")) process.exitCode = 1;

  /** All contenders by turns, after a segment each that does not count. */
  async function measure(
    client: BenchProcess,
    taking: readonly Contender[],
    size: number,
    inFlight: number,
  ): Promise<readonly Segment[]> {
    const segments: Segment[] = [];
    for (let round = -1; round < rounds; round += 1) {
      for (const { name, order, servers } of taking) {
        const before = await cpuOf(servers);
        const asked: LoadOrder = {
          ...order(size),
          size,
          inFlight,
          durationMs: segmentMs,
          maxRequests: Number.MAX_SAFE_INTEGER,
        };
        const answer = await client.ask<LoadResult>(asked);
        const after = await cpuOf(servers);
        if (round >= 0) segments.push({ name, round, ...answer, cpuUs: (after - before) / answer.requests });
      }
    }
    return segments;
  }

  /** With a hundred accounts in use for so long that each lease is renewed, and nothing else going on. */
  async function countVaultCalls(client: BenchProcess, taking: readonly Contender[]): Promise<number> {
    const proxy = taking.find(({ name }) => name === "c");
    if (proxy === undefined) throw new Error("the proxy does not take part");
    const order = { ...proxy.order(100), accounts: 100, size: 100, inFlight: 64, maxRequests: Number.MAX_SAFE_INTEGER };
    await client.ask<LoadResult>({ ...order, durationMs: 1_000 });
    const before = neighbours.leases();
    const { requests } = await client.ask<LoadResult>({ ...order, durationMs: isQuick ? 7_000 : 14_000 });
    return Number((((neighbours.leases() - before) / requests) * 1000).toFixed(2));
  }

  async function cpuOf(servers: readonly BenchProcess[]): Promise<number> {
    let used = 0;
    for (const server of servers) used += await server.cpu();
    return used;
  }
} finally {
  for (const end of ends.reverse()) await end();
  await rm(directory, { recursive: true, force: true });
}
