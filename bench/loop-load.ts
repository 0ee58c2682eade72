// The refresh loop at work, in true vault processes: how much one of them refreshes and what that costs it, what becomes of
// thousands of tokens that end together, and what a provider that never answers does to the accounts of another.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Child } from "../dev/child.ts";
import { refreshAfterSeconds } from "../services/vault/refresh-times.ts";
import type { BenchApp, LoopStand } from "./loop-stand.ts";
import { at } from "./quantiles.ts";
import type { SealedAccounts } from "./sealed-accounts.ts";

// More hosts than one process has requests under way, so that it is the process that is measured.
const fast = Array.from({ length: 8 }, (_, index) => `fast_${index}`);
const accountsPerHost = 750;

/** The apps that are measured with. */
export const benchApps: readonly BenchApp[] = [
  // Due again after a second, which no process keeps up with: there is always more to do.
  ...fast.map((slug) => ({ slug, latencyMs: 2, expiresInSeconds: 2 })),
  { slug: "burst", latencyMs: 50, expiresInSeconds: 3600 },
  { slug: "budgeted", latencyMs: 2, expiresInSeconds: 3600, refreshesPerMinute: 600 },
  { slug: "good", latencyMs: 20, expiresInSeconds: 3600 },
  { slug: "hanging", latencyMs: 0, expiresInSeconds: 3600, hangs: true },
];

/** What the parts share. */
export interface Bench {
  readonly stand: LoopStand;
  readonly accounts: SealedAccounts;
}

interface Sample {
  readonly rss: number;
  readonly heapUsed: number;
  readonly cpuUs: number;
}

/** One process at its limit for so many seconds. */
export async function measureSustained({ stand, accounts }: Bench, vault: Child, seconds: number) {
  for (const slug of fast) await accounts.add(slug, accountsPerHost);
  for (const slug of fast) await accounts.makeDue(slug);
  // Compiled, connected, and its cache of data keys full.
  await sleep(6_000);
  const from = samplesOf(vault).length;
  const [before, startMs] = [await requestsOf(stand, fast), performance.now()];
  const rates: number[] = [];
  for (let last = before, second = 0; second < seconds; second += 1) {
    await sleep(1_000);
    const now = await requestsOf(stand, fast);
    rates.push(now - last);
    last = now;
  }
  const refreshes = (await requestsOf(stand, fast)) - before;
  const elapsedSeconds = (performance.now() - startMs) / 1000;
  const samples = samplesOf(vault).slice(from);
  await accounts.rest(...fast);
  const stats = await Promise.all(fast.map((slug) => stand.endpointStats(slug)));
  const cpuUs = (samples.at(-1)?.cpuUs ?? 0) - (samples[0]?.cpuUs ?? 0);
  const halves = [samples.slice(0, samples.length / 2), samples.slice(samples.length / 2)] as const;
  const [rssMb, laterRssMb] = halves.map((half) =>
    at(
      half.map(({ rss }) => rss / 2 ** 20),
      0.5,
    ),
  );
  // Between two collections the heap only grows: what is kept is the least that is seen.
  const [heapMb, laterHeapMb] = halves.map((half) =>
    at(
      half.map(({ heapUsed }) => heapUsed / 2 ** 20),
      0,
    ),
  );
  return {
    seconds: Number(elapsedSeconds.toFixed(1)),
    refreshes,
    refreshesPerSecond: { median: at(rates, 0.5), lower: at(rates, 0.25), upper: at(rates, 0.75) },
    vaultCpuUsPerRefresh: Math.round(cpuUs / refreshes),
    memoryMb: { rss: [rssMb ?? 0, laterRssMb ?? 0], keptHeap: [heapMb ?? 0, laterHeapMb ?? 0] } as const,
    mostAtOncePerHost: Math.max(...stats.map(({ mostAtOnce }) => mostAtOnce)),
    tokensSentTwice: stats.reduce((sum, { tokensSentTwice }) => sum + tokensSentTwice, 0),
  };
}

// The least that the rules leave between the due time of a token that lives for more than ten minutes and its end.
const leastMarginSeconds = 300;

/**
 * Tokens that end in one second, harder than they come: not spread over their jitter but all due at the last moment, as after
 * an outage of all vaults. Beside them an app with a budget.
 */
export async function measureExpiries({ stand, accounts }: Bench, count: number) {
  await accounts.add("burst", count);
  await accounts.add("budgeted", 2_000);
  const dueMs = await accounts.makeDue("burst", { endsInSeconds: leastMarginSeconds });
  await accounts.makeDue("budgeted", { endsInSeconds: leastMarginSeconds });
  const startMs = performance.now();
  let refreshed = await accounts.refreshTimes("burst", 2n);
  while (refreshed.size < count && performance.now() - startMs < leastMarginSeconds * 1000) {
    await sleep(500);
    refreshed = await accounts.refreshTimes("burst", 2n);
  }
  const budgeted = await stand.endpointStats("budgeted");
  const budgetSeconds = (performance.now() - startMs) / 1000;
  await accounts.rest("budgeted");
  const seconds = (Math.max(...refreshed.values()) - dueMs) / 1000;
  const { mostAtOnce, tokensSentTwice } = await stand.endpointStats("burst");
  return {
    accounts: count,
    refreshed: refreshed.size,
    seconds: Number(seconds.toFixed(1)),
    refreshesPerSecond: Math.round(count / seconds),
    leastSecondsLeft: Number((leastMarginSeconds - seconds).toFixed(1)),
    mostAtOncePerHost: mostAtOnce,
    tokensSentTwice,
    budget: { perMinute: 600, seconds: Number(budgetSeconds.toFixed(1)), requests: budgeted.requests },
    asTheyCome: dueSpread(count),
  };
}

/** How the due times of tokens that live for an hour and end together are spread: the jitter's own part. */
function dueSpread(count: number) {
  const dues = Array.from({ length: count }, () => Math.floor(refreshAfterSeconds(3600, 0, Math.random)));
  const perSecond = [...Map.groupBy(dues, (due) => due).values()].map(({ length }) => length);
  return { overSeconds: Math.max(...dues) - Math.min(...dues), mostDuePerSecond: Math.max(...perSecond) };
}

const dueEveryMs = 10;

/** How late a good provider's accounts are refreshed, alone and then beside a provider that never answers. */
export async function measureHanging({ stand, accounts }: Bench, seconds: number, vaults: number) {
  const count = (seconds * 1000) / dueEveryMs;
  await accounts.add("good", count);
  await accounts.add("hanging", 500);
  const alone = await lateness(accounts, { count, generation: 2n });
  await accounts.makeDue("hanging");
  while ((await stand.endpointStats("hanging")).requests < 10 * vaults) await sleep(100);
  const beside = await lateness(accounts, { count, generation: 3n });
  const { mostAtOnce } = await stand.endpointStats("hanging");
  return { accounts: count, aloneSeconds: alone, besideSeconds: beside, mostAtOnceAtHanging: mostAtOnce };
}

async function lateness(accounts: SealedAccounts, { count, generation }: { count: number; generation: bigint }) {
  const firstMs = await accounts.makeDue("good", { inSeconds: 1, everyMs: dueEveryMs });
  const giveUpMs = performance.now() + 2 * count * dueEveryMs + 10_000;
  let times = await accounts.refreshTimes("good", generation);
  while (times.size < count && performance.now() < giveUpMs) {
    await sleep(500);
    times = await accounts.refreshTimes("good", generation);
  }
  const late = [...times].map(([number, timeMs]) => (timeMs - (firstMs + number * dueEveryMs)) / 1000);
  return { refreshed: times.size, median: at(late, 0.5), p99: at(late, 0.99) };
}

async function requestsOf(stand: LoopStand, slugs: readonly string[]): Promise<number> {
  const stats = await Promise.all(slugs.map((slug) => stand.endpointStats(slug)));
  return stats.reduce((sum, { requests }) => sum + requests, 0);
}

function samplesOf({ logFile }: Child): readonly Sample[] {
  const lines = readFileSync(logFile, "utf8").split("\n");
  return lines.flatMap((line) => (line.startsWith('{"rss":') ? [JSON.parse(line) as Sample] : []));
}
