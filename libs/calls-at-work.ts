// The calls that a server is working on. When it stops, they get time to end by themselves; what is left is told to end by
// its signal, so that a stream without end, or a caller who reads no more, cannot keep a process from stopping.
import { setTimeout as sleep } from "node:timers/promises";
import { StatusError } from "./errors.ts";

/** The calls at work in one server. */
export interface CallsAtWork {
  /** Keeps an eye on a call that has begun; `work` never rejects. */
  add(work: Promise<void>, cancellation: AbortController): void;
  /** Settles when no call is left, or when the time is over. Calls that take longer than nine tenths of it are aborted. */
  end(timeoutMs: number): Promise<void>;
}

/** Makes an empty set of calls. */
export function callsAtWork(): CallsAtWork {
  const calls = new Map<Promise<void>, AbortController>();
  const settled = () => Promise.all(calls.keys());
  return {
    add(work, cancellation) {
      calls.set(work, cancellation);
      work.finally(() => calls.delete(work));
    },
    async end(timeoutMs) {
      await within(settled(), timeoutMs * 0.9);
      for (const cancellation of calls.values()) cancellation.abort(stopping());
      await within(settled(), timeoutMs * 0.1);
    },
  };
}

/** Waits for the promise, but not longer than this. */
export async function within(promise: Promise<unknown>, timeoutMs: number): Promise<void> {
  const timer = new AbortController();
  await Promise.race([promise, sleep(timeoutMs, undefined, { signal: timer.signal }).catch(() => undefined)]);
  timer.abort();
}

function stopping(): StatusError {
  return new StatusError("UNAVAILABLE", "STOPPING", "The server is stopping: call again.");
}
