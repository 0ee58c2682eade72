// Stops a queue of background jobs, and never hangs: a queue that has lost its database goes on for minutes to note there which
// jobs have ended, and a pool does not end while one of its connections is out. What is cut off here is repeated by the queue.
import { within } from "./calls-at-work.ts";

/** Lets jobs at work end, then closes the queue's pool; neither is waited for any longer than this. */
export async function stopQueue(
  runner: { stop(): Promise<void> },
  pool: { end(): Promise<void> },
  timeoutMs: number,
): Promise<void> {
  const stopping = runner.stop().finally(() => pool.end());
  // Nobody may be left to hear that it failed.
  stopping.catch(() => undefined);
  await within(stopping, timeoutMs);
}
