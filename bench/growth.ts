// `npm run bench:growth`: what a second proxy process adds. One and two of them by turns, in short segments, behind a load that
// uses them in turn; what counts is the median of the rounds' ratios, and two must give 1.8 times what one gives. On a machine
// whose cores are needed for load and upstream as well, a second process would only take their time: so each proxy process has
// a quarter of a core by a control group, and what is shown is whether processes are in each other's way. Linux with cgroups
// (v1) and root alone can do that. Keeps its figures in bench/results/growth.json.
import { mkdirSync, rmdirSync, writeFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { machine } from "./machine.ts";
import type { LoadOrder, LoadResult } from "./proxy-load.ts";
import { startNeighbours } from "./proxy-neighbours.ts";
import { type BenchProcess, startBenchProcess } from "./proxy-processes.ts";
import { makeBenchTls } from "./proxy-tls.ts";
import { at } from "./quantiles.ts";

const rounds = 10;
const segmentMs = 1_500;
const leastRatio = 1.8;
// In microseconds: a quarter of each tenth of a second.
const [periodUs, quotaUs] = [100_000, 25_000];

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
  const { accountPort, vaultPort, token } = neighbours;
  const options = { kind: "proxy", directory, upstreamPort: upstream.port, accountPort, vaultPort, proxyPort: 0 };
  const start = (name: string) =>
    startBenchProcess("proxy-contender.ts", "server", [JSON.stringify(options)], `${directory}/${name}.log`);
  const proxies = [await start("first"), await start("second")];
  for (const { stop } of proxies) ends.push(stop);

  const orderFor = (servers: readonly BenchProcess[]): Omit<LoadOrder, "durationMs" | "maxRequests"> => ({
    protocol: "grpc",
    origins: servers.map(({ port }) => `http://127.0.0.1:${port}`),
    path: "/deputy.proxy.v1.ProxyService/Forward",
    headers: { authorization: `Bearer ${token}`, "grpc-timeout": "20S" },
    accounts: 4,
    size: 100,
    inFlight: 32,
  });
  const [one, two] = [orderFor(proxies.slice(0, 1)), orderFor(proxies)];
  // Compiled and connected, before they are held back.
  await load.ask<LoadResult>({ ...two, durationMs: 30_000, maxRequests: 40_000 });
  for (const [index, { pid }] of proxies.entries()) ends.push(holdBack(`deputy-bench-${process.pid}-${index}`, pid));

  const results: { one: number; two: number }[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const perSecond = { one: 0, two: 0 };
    for (const [name, order] of Object.entries({ one, two }) as ["one" | "two", typeof one][]) {
      const result = await load.ask<LoadResult>({
        ...order,
        durationMs: segmentMs,
        maxRequests: Number.MAX_SAFE_INTEGER,
      });
      if (result.failures > 0) throw new Error(`${result.failures} requests failed`);
      perSecond[name] = result.perSecond;
    }
    results.push(perSecond);
  }
  const ratios = results.map(({ one: single, two: both }) => both / single);
  const round = (value: number) => Math.round(value * 100) / 100;
  const figures = {
    onePerSecond: Math.round(
      at(
        results.map((result) => result.one),
        0.5,
      ),
    ),
    twoPerSecond: Math.round(
      at(
        results.map((result) => result.two),
        0.5,
      ),
    ),
    /** Lower quartile, median, upper quartile. */
    ratios: [0.25, 0.5, 0.75].map((share) => round(at(ratios, share))),
  };
  console.table(figures);
  const file = new URL("results/growth.json", import.meta.url);
  await writeFile(
    file,
    `${JSON.stringify({ machine: machine(), coreShare: quotaUs / periodUs, ...figures }, undefined, 2)}\n`,
  );
  const holds = at(ratios, 0.5) >= leastRatio;
  console.log(`${holds ? "holds" : "DOES NOT HOLD"}: two processes give at least ${leastRatio} times what one gives`);
  if (!holds) process.exitCode = 1;
} finally {
  for (const end of ends.reverse()) await end();
  await rm(directory, { recursive: true, force: true });
}

/** Gives a process its share of a core; what it gives back lets it go. */
function holdBack(name: string, pid: number): () => Promise<void> {
  const group = `/sys/fs/cgroup/cpu/${name}`;
  mkdirSync(group);
  writeFileSync(`${group}/cpu.cfs_period_us`, String(periodUs));
  writeFileSync(`${group}/cpu.cfs_quota_us`, String(quotaUs));
  writeFileSync(`${group}/cgroup.procs`, String(pid));
  return async () => {
    writeFileSync("/sys/fs/cgroup/cpu/cgroup.procs", String(pid));
    await sleep(100);
    rmdirSync(group);
  };
}
