// Wakes those who wait for something to happen in a database, over all processes that work with it: Postgres notifications on one
// connection. They are the fast path alone: every waiter also looks by itself after a while, so a lost connection makes things
// slower, not wrong.
import { setTimeout as sleep } from "node:timers/promises";
import { type Connection, type DatabaseOptions, openConnection } from "./database.ts";
import type { Logger } from "./log.ts";

/** Signals of all processes. */
export interface Signals<Channel extends string> {
  /** How many there were. Take it before looking, and wait for the next one after it: so none gets lost in between. */
  count(channel: Channel): number;
  /** Resolves when there were more than `seen`, after the time given, at `stop`, or when the signal fires. */
  next(channel: Channel, seen: number, timeoutMs: number, signal?: AbortSignal): Promise<void>;
  /** Fires at `stop`: whoever serves until then ends. */
  readonly stopping: AbortSignal;
  stop(): Promise<void>;
}

/** What is listened to. */
export interface SignalOptions<Channel extends string> {
  readonly database: DatabaseOptions;
  readonly channels: readonly Channel[];
  readonly log: Logger;
  /** Gets each notification that a transaction has sent, with its text; signals that this process makes up have none. */
  readonly onPayload?: (channel: Channel, payload: string) => void;
}

/** Signals, and the way to send one. */
export interface SignalsAndConnection<Channel extends string> extends Signals<Channel> {
  /** Sends a notification, to this process too; not while the connection is lost. */
  notify(channel: Channel, payload: string): Promise<void>;
}

const retryMs = 1_000;

/** Starts listening, and again after a loss. */
export function listenForSignals<Channel extends string>(
  options: SignalOptions<Channel>,
): SignalsAndConnection<Channel> {
  const { database, channels, log, onPayload } = options;
  const heard = new Map(channels.map((channel) => [channel as string, { count: 0, waiting: new Set<() => void>() }]));
  const ending = new AbortController();
  let connection: Connection | undefined;

  function channelOf(channel: Channel) {
    const found = heard.get(channel);
    if (found === undefined) throw new Error(`nobody listens to ${channel}`);
    return found;
  }

  function signal(channel: Channel): void {
    const { waiting } = channelOf(channel);
    channelOf(channel).count += 1;
    for (const wake of waiting) wake();
  }

  async function listen(): Promise<void> {
    connection = await openConnection(database);
    const lost = Promise.withResolvers<void>();
    connection.onLost(lost.resolve);
    connection.onNotification((channel, payload) => {
      if (!heard.has(channel)) return;
      signal(channel as Channel);
      onPayload?.(channel as Channel, payload);
    });
    await connection.query(channels.map((channel) => `listen ${channel}`).join("; "));
    // What was said while nobody listened.
    for (const channel of channels) signal(channel);
    // Where the end came while we connected, nobody would tell of it any more.
    if (ending.signal.aborted) return;
    ending.signal.addEventListener("abort", () => lost.resolve(), { once: true });
    await lost.promise;
  }

  async function listenAgain(): Promise<void> {
    while (!ending.signal.aborted) {
      await listen().catch((error: unknown) => log.warn({ err: error, channels }, "cannot listen to the database"));
      await connection?.end().catch(() => undefined);
      connection = undefined;
      await sleep(retryMs, undefined, { signal: ending.signal }).catch(() => undefined);
    }
  }

  const listening = listenAgain();
  return {
    count: (channel) => channelOf(channel).count,
    async next(channel, seen, timeoutMs, signal) {
      const { count, waiting } = channelOf(channel);
      if (count > seen || ending.signal.aborted || signal?.aborted) return;
      await new Promise<void>((resolve) => {
        const wake = () => {
          clearTimeout(timer);
          waiting.delete(wake);
          signal?.removeEventListener("abort", wake);
          resolve();
        };
        const timer = setTimeout(wake, timeoutMs);
        waiting.add(wake);
        signal?.addEventListener("abort", wake);
      });
    },
    async notify(channel, payload) {
      await connection?.query("select pg_notify($1, $2)", [channel, payload]);
    },
    stopping: ending.signal,
    async stop() {
      ending.abort();
      for (const { waiting } of heard.values()) for (const wake of waiting) wake();
      await listening;
    },
  };
}
