// Background work stands back while callers of this process are waiting for credentials to be destroyed: an environment's end
// queues thousands of calls to providers, which would otherwise take the time of the very call that queued them.
import { setTimeout as sleep } from "node:timers/promises";

// The next batch of an environment comes this soon after the one before it.
const pauseMs = 100;
const lookMs = 20;

// Who destroys without end must not keep providers from being told.
const mostMs = 5_000;

/** Who goes before whom in one process. */
export interface CallersFirst {
  /** Runs work that a caller waits for. */
  serve<Value>(work: () => Promise<Value>): Promise<Value>;
  /** Waits until no caller has been waiting for a moment; some seconds at most. */
  standBack(): Promise<void>;
}

/** One for a process. */
export function callersFirst(): CallersFirst {
  let atWork = 0;
  let endMs = Number.NEGATIVE_INFINITY;
  return {
    async serve(work) {
      atWork += 1;
      try {
        return await work();
      } finally {
        atWork -= 1;
        endMs = performance.now();
      }
    },
    async standBack() {
      const deadlineMs = performance.now() + mostMs;
      for (;;) {
        const nowMs = performance.now();
        if ((atWork === 0 && nowMs - endMs >= pauseMs) || nowMs >= deadlineMs) return;
        await sleep(lookMs);
      }
    },
  };
}
