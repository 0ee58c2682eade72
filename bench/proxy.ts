// `npm run bench:proxy` (`-- --quick` for a look): what the proxy costs, beside what else could stand in its place. In one run,
// in short segments by turns, so that a machine that gets slower gets slower for all; what is told are ratios, by their median
// and quartiles over the rounds. One upstream for all, raw TLS with ready answers of 100 B, 10 KB and 1 MB; 1, 16 and 64
// requests in flight. The neighbours (account service, vault) are stand-ins in this process.
//
// Ends with status 1 when a request failed, or a ratio is below its floor. Keeps the tables in bench/results/proxy.json.
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
const rounds = isQuick ? 4 : 8;
const segmentMs = isQuick ? 350 : 600;
const sizes = isQuick ? [100] : [100, 10_240, 1_048_576];
const inFlights = [1, 16, 64];

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
  const { contenders, left } = await startContenders(directory, upstream.port, neighbours);
  for (const { process: server } of contenders) if (server !== undefined) ends.push(server.stop);

  const tables: Table[] = [];
  let warmRequests = 0;
  let warmLeases = 0;
  for (const size of sizes) {
    for (const inFlight of inFlights) {
      const taking = contenders.filter(({ sizes: some, inFlights: few }) => some(size) && few(inFlight));
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
    vaultCallsPerThousand: Number(((warmLeases / warmRequests) * 1000).toFixed(2)),
    tables,
  };
  for (const { size, inFlight, rows } of tables) {
    console.log(`\n${size} B, ${inFlight} in flight`);
    console.table(rows);
  }
  for (const reason of left) console.log(`left out: ${reason}`);
  console.log(`vault calls per 1,000 warm requests: ${result.vaultCallsPerThousand}`);
  const found = verdicts(tables, result.vaultCallsPerThousand);
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
      for (const { name, order, process: server } of taking) {
        const before = await server?.cpu();
        const leasesBefore = neighbours.leases();
        const asked: LoadOrder = { ...order(size), size, inFlight, durationMs: segmentMs, maxRequests: Infinity };
        const answer = await client.ask<LoadResult>(asked);
        const after = await server?.cpu();
        if (round < 0) continue;
        segments.push({ name, round, ...answer, cpuUs: ((after ?? 0) - (before ?? 0)) / answer.requests });
        if (name !== "c") continue;
        warmRequests += answer.requests;
        warmLeases += neighbours.leases() - leasesBefore;
      }
    }
    return segments;
  }
} finally {
  for (const end of ends.reverse()) await end();
  await rm(directory, { recursive: true, force: true });
}
