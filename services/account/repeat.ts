// What a process does now and then for as long as it runs: each run after the one before it has ended, a failed one told in the
// log and made up for by the next. Other processes do the same at the same time, so what is repeated must bear that.
import type { Logger } from "#libs/log.ts";

/** What is done, how often, and what the log says when it fails. */
export interface Repeated {
  readonly work: () => Promise<void>;
  readonly intervalMs: number;
  readonly failure: string;
}

/** Starts it. `stop` lets a run that is under way end. */
export function startRepeating({ work, intervalMs, failure }: Repeated, log: Logger): { stop(): Promise<void> } {
  let running: Promise<void> | undefined;
  const timer = setInterval(() => {
    running ??= work()
      .catch((error: unknown) => log.warn({ err: error }, failure))
      .finally(() => {
        running = undefined;
      });
  }, intervalMs);
  return {
    async stop() {
      clearInterval(timer);
      await running;
    },
  };
}
