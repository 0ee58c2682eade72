// `npm run bench:fairness`: what one project's calls cost another. The limited project sends ten times what it may, and the
// other's p99 must take twice as long at most. Both ways are measured in turn, in short segments, because the machine drifts;
// what counts is the median of the pairs' ratios. Callers, upstream, services and Postgres share the machine, so that one that
// is busy otherwise tells nothing. Keeps its figures in bench/results/fairness.json.
import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { StatusError } from "#libs/errors.ts";
import { machine } from "./machine.ts";
import { at } from "./quantiles.ts";
import { openSoakStand, type Tenant } from "./soak-stand.ts";

/** What the limited project may send in a second. */
const limit = 20;
/** Calls of the other project in a second. */
const moderatePerSecond = 50;
const segmentMs = 4_000;
const pairs = 6;
// Twice, and the machine's own wavering.
const mostRatio = 2 * 1.2;
// A segment touches so many windows of a second.
const windowsPerSegment = 5;

const stand = await openSoakStand({ limitedTo: limit });
try {
  const figures = await measure();
  console.table(figures);
  const file = new URL("results/fairness.json", import.meta.url);
  await writeFile(file, `${JSON.stringify({ machine: machine(), ...figures }, undefined, 2)}\n`);
  const holds = figures.ratios[1] <= mostRatio && figures.letIn <= limit * windowsPerSegment * pairs;
  console.log(holds ? "holds: the other project's p99 at most doubles" : "DOES NOT HOLD");
  if (!holds) process.exitCode = 1;
} finally {
  await stand.close();
}

async function measure() {
  const { first, limited } = stand;
  const count = { refused: 0, letIn: 0 };
  const flood = () =>
    pace(limit * 10, async () => {
      const result = await send(limited);
      if (result === "RATE_LIMITED") count.refused += 1;
      else if (result === "OK") count.letIn += 1;
      else throw new Error(`a call of the limited project ended in ${result}`);
    });
  const call = (into: number[]) => pace(moderatePerSecond, async () => void into.push(await timed(first)));
  // Compiled and connected.
  await Promise.all([flood(), call([])]);
  Object.assign(count, { refused: 0, letIn: 0 });
  const p99Ms: { alone: number; beside: number }[] = [];
  for (let pair = 0; pair < pairs; pair += 1) {
    const [alone, beside]: [number[], number[]] = [[], []];
    await call(alone);
    await Promise.all([call(beside), flood()]);
    p99Ms.push({ alone: at(alone, 0.99), beside: at(beside, 0.99) });
  }
  const ratios = p99Ms.map(({ alone, beside }) => beside / alone);
  return {
    ...{ limit, offeredPerSecond: limit * 10, ...count },
    aloneP99Ms: at(
      p99Ms.map(({ alone }) => alone),
      0.5,
    ),
    besideP99Ms: at(
      p99Ms.map(({ beside }) => beside),
      0.5,
    ),
    /** Lower quartile, median, upper quartile. */
    ratios: [at(ratios, 0.25), at(ratios, 0.5), at(ratios, 0.75)] as const,
  };
}

/** Starts so many calls in each second of one segment, evenly, and waits for them. */
async function pace(perSecond: number, call: () => Promise<void>): Promise<void> {
  const calls: Promise<void>[] = [];
  for (const startMs = performance.now(); performance.now() < startMs + segmentMs; await sleep(2)) {
    const due = Math.floor(((performance.now() - startMs) / 1000) * perSecond);
    while (calls.length < due) {
      const made = call();
      // Told below, when all have ended.
      made.catch(() => undefined);
      calls.push(made);
    }
  }
  await Promise.all(calls);
}

async function timed(tenant: Tenant): Promise<number> {
  const startMs = performance.now();
  const result = await send(tenant);
  if (result !== "OK") throw new Error(`a call of the other project ended in ${result}`);
  return performance.now() - startMs;
}

async function send({ projectId, token, slot }: Tenant): Promise<string> {
  const { proxy, upstream, environment } = stand;
  const request = { projectId, environment, ...slot, method: "GET", url: `https://${upstream.host}/small` };
  try {
    const { status } = await proxy.forward(request, { deadlineMs: Date.now() + 10_000, token });
    return status === 200 ? "OK" : String(status);
  } catch (error) {
    if (error instanceof StatusError) return error.reason;
    throw error;
  }
}
