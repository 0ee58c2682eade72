// Waiting for work that goes on without those who wait: a refresh, a lease that many asked for. Each waits as long as it can.
import { StatusError } from "./errors.ts";

/** How long a caller waits. */
export interface Patience {
  readonly deadlineMs: number;
  readonly signal?: AbortSignal;
}

/** Waits until the work is done, the caller's deadline, or the caller's end. */
export async function within<Value>(work: Promise<Value>, { deadlineMs, signal }: Patience): Promise<Value> {
  const { promise: left, reject } = Promise.withResolvers<never>();
  const timedOut = () =>
    reject(new StatusError("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "The deadline has passed; the work goes on."));
  const aborted = () => reject(new StatusError("CANCELLED", "CANCELLED", "The caller has left."));
  const timer = setTimeout(timedOut, Math.max(0, Math.min(deadlineMs - Date.now(), 2_147_483_647)));
  signal?.addEventListener("abort", aborted, { once: true });
  if (signal?.aborted) aborted();
  try {
    return await Promise.race([work, left]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", aborted);
    // Nobody may be left to hear that it failed.
    work.catch(() => undefined);
  }
}
