// From segments to tables and verdicts: medians, and the median and quartiles of each round's ratio to the bare forwarder.
import type { LoadResult } from "./proxy-load.ts";

/** One contender's segment of one round. */
export interface Segment extends LoadResult {
  readonly name: string;
  readonly round: number;
  /** Processor time of the server per request. */
  readonly cpuUs: number;
}

/** What a table says of a contender. */
export interface Row {
  readonly perSecond: number;
  /** Requests per second as a share of b's in the same round: median, quartiles. */
  readonly toBare: number;
  readonly quartiles: string;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly cpuUs: number;
  readonly failures: number;
}

/** All contenders at one size and one number of requests in flight. */
export interface Table {
  readonly size: number;
  readonly inFlight: number;
  readonly rows: Readonly<Record<string, Row>>;
}

/** Whether something holds, and what. */
export interface Verdict {
  readonly holds: "holds" | "MISSED" | "BELOW THE FLOOR";
  readonly text: string;
}

const round = (value: number, digits: number) => Number(value.toFixed(digits));

function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) * share + 0.5)] ?? 0;
}

/** Makes the table of one cell. */
export function summarize(size: number, inFlight: number, segments: readonly Segment[]): Table {
  const names = [...new Set(segments.map(({ name }) => name))];
  const rows = names.map((name) => {
    const own = segments.filter((segment) => segment.name === name);
    const bare = name.endsWith(" tls") ? "b tls" : "b";
    const ratios = own.flatMap(({ round: turn, perSecond }) => {
      const beside = segments.find((segment) => segment.name === bare && segment.round === turn);
      return beside === undefined ? [] : [perSecond / beside.perSecond];
    });
    const median = (value: (segment: Segment) => number) => quantile(own.map(value), 0.5);
    const row: Row = {
      perSecond: Math.round(median(({ perSecond }) => perSecond)),
      toBare: round(quantile(ratios, 0.5), 2),
      quartiles: `${quantile(ratios, 0.25).toFixed(2)}-${quantile(ratios, 0.75).toFixed(2)}`,
      p50Ms: round(
        median(({ p50Ms }) => p50Ms),
        2,
      ),
      p99Ms: round(
        median(({ p99Ms }) => p99Ms),
        2,
      ),
      cpuUs: Math.round(median(({ cpuUs }) => cpuUs)),
      failures: own.reduce((sum, { failures }) => sum + failures, 0),
    };
    return [name, row] as const;
  });
  return { size, inFlight, rows: Object.fromEntries(rows) };
}

/** What is promised, and whether it holds. The floor alone decides how the bench ends, and it is a ratio. */
export function verdicts(tables: readonly Table[], vaultCallsPerThousand: number): readonly Verdict[] {
  const found: Verdict[] = [];
  const say = (goalMet: boolean, text: string, floorMet = true) =>
    found.push({ holds: !floorMet ? "BELOW THE FLOOR" : goalMet ? "holds" : "MISSED", text });
  for (const { size, inFlight, rows } of tables) {
    const { b, c, f, "c tls": overTls } = rows;
    if (b === undefined || c === undefined) continue;
    const where = `${size} B, ${inFlight} in flight`;
    if (inFlight > 1) say(c.toBare >= 0.8, `c/b ${c.toBare} (goal 0.80, floor 0.70) at ${where}`, c.toBare >= 0.7);
    if (inFlight > 1 && overTls !== undefined)
      say(overTls.toBare >= 0.8, `c/b over mutual TLS ${overTls.toBare} at ${where}`);
    if (f !== undefined)
      say(c.perSecond >= 3 * f.perSecond, `c/f ${(c.perSecond / f.perSecond).toFixed(1)} (goal 3) at ${where}`);
    if (inFlight === 1)
      say(c.p50Ms - b.p50Ms <= 0.15, `added p50 ${(c.p50Ms - b.p50Ms).toFixed(2)} ms (goal 0.15) at ${where}`);
    if (inFlight === 16) say(c.p99Ms <= 5 * c.p50Ms, `p99/p50 ${(c.p99Ms / c.p50Ms).toFixed(1)} (goal 5) at ${where}`);
    const failures = Object.entries(rows).filter(([, row]) => row.failures > 0);
    for (const [name, row] of failures) say(false, `${row.failures} requests of ${name} failed at ${where}`, false);
  }
  say(
    vaultCallsPerThousand <= 1,
    `vault calls per 1,000 requests ${vaultCallsPerThousand} (goal 1) on 100 accounts in use`,
  );
  return found;
}
