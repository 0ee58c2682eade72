// `npm run bench:soak`: a proxy under load for ten minutes while things go wrong around it. What has to hold: every call ends
// well or with a reason that the fault of that moment may cause, nothing is sent for an account whose revocation was answered,
// and neither memory nor sockets grow. The load is 70% of what callers without a pause get through in the first seconds;
// callers, upstream, services and Postgres share the machine. `--minutes=N`, or `--quick` for one minute. Keeps its figures in
// bench/results/soak.json. Linux alone tells a process's memory and sockets.
import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { machine } from "./machine.ts";
import { medianOfFifth, type ProcessSample, sampleOf, watchProcess } from "./process-watch.ts";
import { at } from "./quantiles.ts";
import { type Fault, startJudge } from "./soak-faults.ts";
import { type Callers, keepCalling, measureCapacity, timeoutMs } from "./soak-load.ts";
import { openSoakStand, type SoakStand } from "./soak-stand.ts";

const { values } = parseArgs({
  options: { minutes: { type: "string", default: "10" }, quick: { type: "boolean", default: false } },
});
const minutes = values.quick ? 1 : Number(values.minutes);
if (!(minutes > 0)) throw new Error(`--minutes: ${values.minutes} is not a number above 0`);
const share = 0.7;
const capacitySeconds = 10;
const capacityCallers = 16;
const slotCount = 12;
const calmMs = 2_000;
const mostGrowth = (before: number) => before * 1.1 + 20;
// Connections to the upstream end by themselves when they are idle for ten seconds.
const idleMs = 12_000;
const idleAgainMs = 30_000;
const spareSockets = 3;

const stand = await openSoakStand();
try {
  const { checks, ...figures } = await measureSoak(stand);
  console.table(figures.growth);
  console.table(figures.ends);
  const result = { machine: machine(), ...figures, checks: Object.fromEntries(checks) };
  await writeFile(new URL("results/soak.json", import.meta.url), `${JSON.stringify(result, undefined, 2)}\n`);
  for (const [what, holds] of checks) console.log(`${holds ? "holds" : "DOES NOT HOLD"}: ${what}`);
  if (checks.some(([, holds]) => !holds)) process.exitCode = 1;
} finally {
  await stand.close();
}

async function measureSoak(soakStand: SoakStand) {
  const { proxy, first, upstream, environment, proxyChild } = soakStand;
  const slots = await soakStand.connectSlots(slotCount);
  const judge = startJudge();
  const callers: Callers = {
    ...{ proxy, token: first.token, projectId: first.projectId, environment },
    ...{ upstream: upstream.host, slots, onEnd: judge.judge },
  };
  await sleep(idleMs);
  const idle = sampleOf(proxyChild);
  const capacity = await measureCapacity(callers, capacityCallers, capacitySeconds);
  const perSecond = Math.round(capacity * share);
  console.log(`capacity ${Math.round(capacity)} calls a second; ${perSecond} a second for ${minutes} min`);

  const faults = faultsOf(soakStand, slots, judge.answeredRevocation);
  const watch = watchProcess(proxyChild);
  const over = new AbortController();
  const calling = keepCalling(callers, perSecond, over.signal);
  const endMs = performance.now() + minutes * 60_000;
  for (let next = 0; performance.now() + calmMs < endMs; next += 1) {
    await sleep(calmMs);
    const fault = faults[next % faults.length];
    if (fault !== undefined) await judge.inflict(fault);
  }
  over.abort();
  const calls = await calling;
  watch.stop();
  const end = await settled(soakStand, idle.sockets + spareSockets);

  const provider = await soakStand.providerStats();

  const growth = {
    residentMb: growthOf(watch.samples, ({ residentMb }) => residentMb),
    heapMb: growthOf(watch.samples, ({ heapMb }) => heapMb),
    sockets: { ...growthOf(watch.samples, ({ sockets }) => sockets), idle: idle.sockets, idleAgain: end.sockets },
  };
  const unfelt = judge.unfelt(faults);
  return {
    ...{ minutes, capacityPerSecond: Math.round(capacity), share, perSecond, ...calls },
    p50Ms: at(judge.latenciesMs, 0.5),
    p99Ms: at(judge.latenciesMs, 0.99),
    ends: Object.fromEntries(judge.counts),
    ...{ faults: judge.faults(), ...provider },
    unexpected: judge.unexpected.length,
    growth,
    checks: [
      ["every call ended well, or as a fault of its time allows", judge.unexpected.length === 0],
      [`every kind of fault was felt${unfelt.map(({ name }) => `, not ${name}`).join("")}`, unfelt.length === 0],
      ["tokens were refreshed, and no grant was killed", provider.refreshes >= slotCount / 2 && provider.killed === 0],
      ["resident memory stays", growth.residentMb.lastFifth <= mostGrowth(growth.residentMb.secondFifth)],
      ["the heap stays", growth.heapMb.lastFifth <= mostGrowth(growth.heapMb.secondFifth)],
      ["sockets are those of an idle process again", end.sockets <= idle.sockets + spareSockets],
      ["the load was there: three quarters of it at least", calls.made >= 0.75 * (calls.made + calls.heldBack)],
    ] as (readonly [string, boolean])[],
  };
}

function faultsOf(
  { upstream, restartVault, endTokens, revoke, connectAnew }: SoakStand,
  slots: Callers["slots"],
  answered: (accountId: string) => void,
): readonly Fault[] {
  let turn = 0;
  const upstreamFault = (how: "reset" | "hang", lastsMs: number) => async () => {
    upstream.behave(how);
    await sleep(lastsMs);
    upstream.behave("well");
  };
  // The last two when the vault's return has taken a caller's time, or most of it.
  const away = ["VAULT_UNREACHABLE", "UNAVAILABLE", "LEASE_EXPIRED", "DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT"];
  return [
    {
      ...{ name: "upstream resets connections", allows: ["UPSTREAM_RESET"], shows: "failure", recoveryMs: 500 },
      run: upstreamFault("reset", 1_500),
    },
    {
      // What is silent now is told so when its time is up.
      ...{ name: "upstream hangs", allows: ["UPSTREAM_TIMEOUT"], shows: "failure", recoveryMs: timeoutMs + 500 },
      run: upstreamFault("hang", 1_000),
    },
    {
      ...{ name: "vault restarted by SIGTERM", allows: away, recoveryMs: 2_000 },
      run: () => restartVault("SIGTERM"),
    },
    {
      ...{ name: "access tokens end", allows: [], recoveryMs: 3_000 },
      // Not of all: a token that was just refreshed is not refreshed again because an upstream refuses it.
      run: () => endTokens(slots.filter((_, index) => index % 2 === 0)),
    },
    {
      ...{ name: "an account is revoked, and connected anew", shows: "failure", recoveryMs: 1_000 },
      allows: ["ACCOUNT_REVOKED", "ACCOUNT_NOT_FOUND"],
      async run(mark) {
        const slot = slots[turn++ % slots.length];
        if (slot === undefined) return;
        const { accountId } = slot;
        mark(accountId);
        await revoke(slot);
        answered(accountId);
        await sleep(1_000);
        await connectAnew(slot);
      },
    },
    {
      ...{ name: "upstream refuses the tokens of now", allows: ["401"], shows: "refresh", recoveryMs: 500 },
      async run() {
        upstream.refuseTokens(true);
        await sleep(2_000);
        upstream.refuseTokens(false);
      },
    },
    {
      ...{ name: "vault killed", allows: away, recoveryMs: 2_000 },
      run: () => restartVault("SIGKILL"),
    },
  ];
}

function growthOf(samples: readonly ProcessSample[], of: (sample: ProcessSample) => number) {
  const all = samples.map(of);
  return { secondFifth: medianOfFifth(all, 1), lastFifth: medianOfFifth(all, 4), most: at(all, 1) };
}

/** The process when it has no more sockets than these, or when its time is up. */
async function settled({ proxyChild }: SoakStand, sockets: number): Promise<ProcessSample> {
  for (const giveUpMs = performance.now() + idleAgainMs; performance.now() < giveUpMs; await sleep(1_000)) {
    const sample = sampleOf(proxyChild);
    if (sample.sockets <= sockets) return sample;
  }
  return sampleOf(proxyChild);
}
