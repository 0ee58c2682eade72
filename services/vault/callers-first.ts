// Background work stands back while callers of this process are waiting for credentials to be destroyed: an environment's end
// queues thousands of calls to providers, which would otherwise take the time of the very call that queued them.
import { setTimeout as sleep } from "node:timers/promises";

const lookMs = 50;

/** How long background work stands back. */
export interface StandingBack {
  /** The next batch of an environment comes this soon after the one before it, on a busy machine too. */
  readonly pauseMs: number;
  /** Who destroys without end must not keep providers from being told: after so long nobody stands back until there was a pause. Shorter than a stop may take. */
  readonly mostMs: number;
}

/** Who goes before whom in one process. */
export interface CallersFirst {
  /** Runs work that a caller waits for. */
  serve<Value>(work: () => Promise<Value>): Promise<Value>;
  /** Waits until no caller has been waiting for a moment, or callers have had their time. */
  standBack(): Promise<void>;
}

/** One for a process. */
export function callersFirst({ pauseMs, mostMs }: StandingBack = { pauseMs: 500, mostMs: 12_000 }): CallersFirst {
  let atWork = 0;
  let busySinceMs = 0;
  let endMs = Number.NEGATIVE_INFINITY;
  const isCalm = () => atWork === 0 && performance.now() - endMs >= pauseMs;
  return {
    async serve(work) {
      if (isCalm()) busySinceMs = performance.now();
      atWork += 1;
      try {
        return await work();
      } finally {
        atWork -= 1;
        endMs = performance.now();
      }
    },
    async standBack() {
      while (!isCalm() && performance.now() - busySinceMs < mostMs) await sleep(lookMs);
    },
  };
}
