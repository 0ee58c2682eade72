// What one project's calls cost another: the limited project sends ten times what it may, and the other's slowest calls must
// take twice as long at most. Both ways are measured in turn, in short segments, because the machine drifts.
import { setTimeout as sleep } from "node:timers/promises";
import { StatusError } from "#libs/errors.ts";
import { at } from "./quantiles.ts";
import type { SoakStand, Tenant } from "./soak-stand.ts";

/** Calls of the project that is measured, in each second. */
const moderatePerSecond = 50;
const segmentMs = 4_000;

/** What was measured. */
export interface Fairness {
  readonly limit: number;
  readonly offeredPerSecond: number;
  readonly refused: number;
  readonly letIn: number;
  readonly aloneP99Ms: number;
  readonly besideP99Ms: number;
  readonly ratio: number;
}

/** So many pairs of segments. */
export async function measureFairness(stand: SoakStand, limit: number, pairs: number): Promise<Fairness> {
  const [alone, beside]: [number[], number[]] = [[], []];
  const count = { refused: 0, letIn: 0 };
  const calm = () => pace(moderatePerSecond, async () => void alone.push(await timed(stand, stand.first)));
  const disturbed = () => pace(moderatePerSecond, async () => void beside.push(await timed(stand, stand.first)));
  const flood = () =>
    pace(limit * 10, async () => {
      const result = await send(stand, stand.limited);
      if (result === "RATE_LIMITED" || result === "TOO_MANY_IN_FLIGHT") count.refused += 1;
      else if (result === "OK") count.letIn += 1;
      else throw new Error(`a call of the limited project ended in ${result}`);
    });
  // Compiled and connected.
  await Promise.all([flood(), pace(moderatePerSecond, async () => void (await timed(stand, stand.first)))]);
  count.refused = 0;
  count.letIn = 0;
  for (let pair = 0; pair < pairs; pair += 1) {
    await calm();
    await Promise.all([disturbed(), flood()]);
  }
  const [aloneP99Ms, besideP99Ms] = [at(alone, 0.99), at(beside, 0.99)];
  const ratio = Number((besideP99Ms / aloneP99Ms).toFixed(2));
  return { limit, offeredPerSecond: limit * 10, ...count, aloneP99Ms, besideP99Ms, ratio };
}

/** Starts so many calls in each second of one segment, evenly, and waits for them. */
async function pace(perSecond: number, call: () => Promise<void>): Promise<void> {
  const calls: Promise<void>[] = [];
  for (const startMs = performance.now(); performance.now() < startMs + segmentMs; await sleep(2)) {
    const due = Math.floor(((performance.now() - startMs) / 1000) * perSecond);
    while (calls.length < due) calls.push(call());
  }
  await Promise.all(calls);
}

async function timed(stand: SoakStand, tenant: Tenant): Promise<number> {
  const startMs = performance.now();
  const result = await send(stand, tenant);
  if (result !== "OK") throw new Error(`a call of the other project ended in ${result}`);
  return performance.now() - startMs;
}

async function send({ proxy, upstream, environment }: SoakStand, tenant: Tenant): Promise<string> {
  const { projectId, token, slot } = tenant;
  const request = { projectId, environment, ...slot, method: "GET", url: `https://${upstream.host}/small` };
  try {
    const { status } = await proxy.forward(request, { deadlineMs: Date.now() + 10_000, token });
    return status === 200 ? "OK" : String(status);
  } catch (error) {
    if (error instanceof StatusError) return error.reason;
    throw error;
  }
}
