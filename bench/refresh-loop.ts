// `npm run bench:refresh-loop`: the loop that refreshes ahead of time, at scale. Finding the next batch must cost the same in
// a large table as in a small one; a vault process must keep its memory while it refreshes without a pause; tokens that end
// together must all be refreshed before; a provider that hangs must delay nobody else's. What is asserted are ratios and
// counts; times depend on the machine, which the vaults, the token endpoints and Postgres share. `--quick` takes less than a
// minute, leaves out the largest table and keeps no figures; `--profile` leaves CPU profiles of the vaults in this folder.
import { writeFile } from "node:fs/promises";
import { availableParallelism, cpus, totalmem } from "node:os";
import { join } from "node:path";
import { type ClaimCost, claimedApps, measureClaims, type PlanFacts } from "./claim-cost.ts";
import { benchApps, measureExpiries, measureHanging, measureSustained } from "./loop-load.ts";
import { openLoopStand } from "./loop-stand.ts";
import { sealedAccounts } from "./sealed-accounts.ts";

const quick = process.argv.includes("--quick");
const sizes = quick ? [10_000, 100_000] : [10_000, 100_000, 1_000_000];
const mostGrowth = 1.5;
const vaultCount = 2;
const mostPerHost = 10;
// The loops look for work as often: no time is known any better.
const pollSeconds = 1;

const stand = await openLoopStand(benchApps, { profile: process.argv.includes("--profile") });
try {
  const { figures, checks } = await measure();
  const claims = figures.claims.map(({ rows, batchMs, idleMs, plan }) => ({
    ...{ rows, "batch ms": batchMs[1], "idle poll ms": idleMs[1] },
    ...{ "batch pages": plan.batch.pages, "idle poll pages": plan.idle.pages, "found by": plan.batch.indexes.join() },
  }));
  console.table(claims);
  const { sustained, expiries, hanging } = figures;
  console.dir({ sustained, expiries, hanging }, { depth: 4 });
  console.table(checks.map(([what, holds]) => ({ what, holds })));
  if (!quick)
    await writeFile(
      join(import.meta.dirname, "results/refresh-loop.json"),
      `${JSON.stringify({ machine: machine(), ...figures }, undefined, 2)}\n`,
    );
  if (!checks.every(([, holds]) => holds)) process.exitCode = 1;
} finally {
  await stand.close();
}

async function measure() {
  console.log("what a claim costs");
  const claims = await measureClaims(stand, sizes);
  const accounts = sealedAccounts(stand);
  try {
    const bench = { stand, accounts };
    console.log("one vault at its limit");
    const first = await stand.startVault("vault-1");
    const sustained = await measureSustained(bench, first, quick ? 6 : 30);
    console.log("tokens that end together, two vaults");
    await stand.startVault("vault-2");
    const expiries = await measureExpiries(bench, quick ? 2_000 : 10_000);
    console.log("beside a provider that hangs");
    const hanging = await measureHanging(bench, quick ? 4 : 12, vaultCount);
    const figures = { claims, sustained, expiries, hanging };
    return { figures, checks: judge(figures) };
  } finally {
    await accounts.close();
  }
}

type Check = readonly [what: string, holds: boolean];
interface Figures {
  readonly claims: readonly ClaimCost[];
  readonly sustained: Awaited<ReturnType<typeof measureSustained>>;
  readonly expiries: Awaited<ReturnType<typeof measureExpiries>>;
  readonly hanging: Awaited<ReturnType<typeof measureHanging>>;
}

function judge({ claims, sustained, expiries, hanging }: Figures): readonly Check[] {
  const plans = claims.flatMap(({ plan }) => [plan.batch, plan.idle]);
  const byIndex = ({ indexes, readsWholeTable, passedOver }: PlanFacts) =>
    indexes.includes("credentials_due") && !readsWholeTable && passedOver === 0;
  const grown = (of: (cost: ClaimCost) => number) => of(claims.at(-1) ?? missing()) / of(claims[0] ?? missing());
  const { rss, keptHeap } = sustained.memoryMb;
  const { perMinute, seconds: budgetSeconds, requests } = expiries.budget;
  // Ten seconds' worth may be saved up; each process counts for itself.
  const budget = vaultCount * perMinute * ((budgetSeconds + 10) / 60);
  const { aloneSeconds, besideSeconds } = hanging;
  return [
    ["what is due is found by the partial index, and nothing else is read", plans.every(byIndex)],
    [
      `a batch takes at most ${mostGrowth} times as long from the largest table`,
      grown((cost) => cost.batchMs[1]) <= mostGrowth,
    ],
    [`a batch touches at most ${mostGrowth} times the pages`, grown(({ plan }) => plan.batch.pages) <= mostGrowth],
    // One way down the index for each app.
    [
      "a poll that finds nothing touches a few pages for each app",
      claims.every(({ plan }) => plan.idle.pages <= 5 * claimedApps),
    ],
    ["memory stays: resident, a quarter at most", rss[1] <= rss[0] * 1.25],
    ["memory stays: kept on the heap, a quarter at most", keptHeap[1] <= keptHeap[0] * 1.25],
    ["no refresh token is sent twice", sustained.tokensSentTwice + expiries.tokensSentTwice === 0],
    [
      `a host gets at most ${mostPerHost} requests of a process at once`,
      sustained.mostAtOncePerHost <= mostPerHost &&
        Math.max(expiries.mostAtOncePerHost, hanging.mostAtOnceAtHanging) <= mostPerHost * vaultCount,
    ],
    [
      "all tokens that end together are refreshed before",
      expiries.refreshed === expiries.accounts && expiries.leastSecondsLeft > 0,
    ],
    ["an app gets no more refreshes than its budget, and most of it", requests <= budget && requests >= budget / 4],
    [
      "a provider that hangs makes no other's accounts late",
      besideSeconds.refreshed === hanging.accounts && besideSeconds.p99 <= aloneSeconds.p99 * mostGrowth + pollSeconds,
    ],
  ];
}

function missing(): never {
  throw new Error("no table was measured");
}

function machine() {
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    memoryGb: Math.round(totalmem() / 2 ** 30),
    node: process.version,
    postgres: "embedded, on this machine: fsync on, shared_buffers 2 GB",
  };
}
