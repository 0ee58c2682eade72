// What every main.ts ends with: stop in order when asked to, and never die without a log line.
import type { Logger } from "./log.ts";

// Longer than any forwarded request may take, shorter than the 60 s after which orchestrators kill.
const drainMs = 35_000;

/**
 * Runs the steps one after the other on SIGTERM and SIGINT, then ends the process with status 0. The first step is to
 * drain the server; pools and clients follow.
 */
export function stopInOrder(
  log: Logger,
  ...steps: readonly ((timeoutMs: number) => Promise<unknown> | unknown)[]
): void {
  let stopping = false;
  const stop = async (signal: string) => {
    if (stopping) return;
    stopping = true;
    log.info({ signal }, "draining");
    for (const step of steps) {
      try {
        await step(drainMs);
      } catch (error) {
        log.error({ err: error }, "a step of the stop failed");
      }
    }
    log.info("stopped");
    process.exit(0);
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
}

/** Logs what nobody caught and ends the process: its state is unknown. */
export function dieLoudly(log: Logger): void {
  const die = (error: unknown) => {
    log.fatal({ err: error }, "uncaught");
    process.exit(1);
  };
  process.on("uncaughtException", die);
  process.on("unhandledRejection", die);
}
