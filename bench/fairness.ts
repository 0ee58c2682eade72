// What one project's calls cost another: the limited project sends ten times what it may, and the other's slowest calls must
// take twice as long at most. Both ways are measured in turn, in short segments, because the machine drifts; what counts is the
// median of the pairs' ratios.
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
  /** Of the pairs: the lower quartile, the median and the upper quartile. */
  readonly ratios: readonly [number, number, number];
}

/** So many pairs of segments. */
export async function measureFairness(stand: SoakStand, limit: number, pairs: number): Promise<Fairness> {
  const pairsMs: { readonly alone: number[]; readonly beside: number[] }[] = [];
  const count = { refused: 0, letIn: 0 };
  const call = (into: number[]) => pace(moderatePerSecond, async () => void into.push(await timed(stand, stand.first)));
  const flood = () =>
    pace(limit * 10, async () => {
      const result = await send(stand, stand.limited);
      if (result === "RATE_LIMITED" || result === "TOO_MANY_IN_FLIGHT") count.refused += 1;
      else if (result === "OK") count.letIn += 1;
      else throw new Error(`a call of the limited project ended in ${result}`);
    });
  // Compiled and connected.
  await Promise.all([flood(), call([])]);
  count.refused = 0;
  count.letIn = 0;
  for (let pair = 0; pair < pairs; pair += 1) {
    const [alone, beside]: [number[], number[]] = [[], []];
    await call(alone);
    await Promise.all([call(beside), flood()]);
    pairsMs.push({ alone, beside });
  }
  const p99Of = (which: "alone" | "beside") => pairsMs.map((pair) => at(pair[which], 0.99));
  const [alone, beside] = [p99Of("alone"), p99Of("beside")];
  const ratios = beside.map((ms, pair) => ms / (alone[pair] ?? ms));
  return {
    ...{ limit, offeredPerSecond: limit * 10, ...count },
    ...{ aloneP99Ms: at(alone, 0.5), besideP99Ms: at(beside, 0.5) },
    ratios: [at(ratios, 0.25), at(ratios, 0.5), at(ratios, 0.75)],
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
