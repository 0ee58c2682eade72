// What the watches of this process have in common: a stream that tells of changes, with heartbeats in between, and that is opened
// again with growing pauses whenever it breaks or falls silent.
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "#libs/log.ts";
import { silenceMs } from "./lease-holds.ts";

/** What is watched, and how. */
export interface KeptWatch {
  /** As it stands in the log: `the vault`. */
  readonly name: string;
  /** Reads one stream to its end. Calls `onBegin` with its first word. */
  readonly watchOnce: (onBegin: () => void) => Promise<void>;
  readonly log: Logger;
  /** Ends the watch between two streams. */
  readonly stopping: AbortSignal;
  /** Told when the watch begins and when it is lost. */
  readonly onChange?: (watching: boolean) => void;
}

/** Every call has a deadline, of an hour at most; a stream that meets it is opened again. */
export const streamMs = 50 * 60_000;

const firstPauseMs = 50;
const longestPauseMs = 2_000;

/** Watches until it is to stop, whether the other side is there yet or not. */
export async function keepWatching({ name, watchOnce, log, stopping, onChange }: KeptWatch): Promise<void> {
  let pauseMs = firstPauseMs;
  while (!stopping.aborted) {
    let fault: unknown;
    let began = false;
    await watchOnce(() => {
      began = true;
      pauseMs = firstPauseMs;
      log.info(`${name} is watched`);
      onChange?.(true);
    }).catch((error: unknown) => {
      fault = error;
    });
    if (stopping.aborted) return;
    // Once for each time that the other side is away, not for each attempt.
    if (began || pauseMs === firstPauseMs) log.warn({ err: fault }, `${name} is not watched`);
    if (began) onChange?.(false);
    await sleep(pauseMs * (0.5 + Math.random()), undefined, { signal: stopping }).catch(() => undefined);
    pauseMs = Math.min(pauseMs * 2, longestPauseMs);
  }
}

/** The messages of a stream, which is given up when it is silent for too long. */
export async function* untilSilent<Message>(
  open: (silence: AbortSignal) => AsyncIterable<Message>,
): AsyncGenerator<Message> {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), silenceMs);
  try {
    for await (const message of open(silence.signal)) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), silenceMs);
      yield message;
    }
  } finally {
    clearTimeout(timer);
  }
}
