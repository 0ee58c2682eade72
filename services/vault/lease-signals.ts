// Wakes those who wait for something about leases, over all vault processes: Postgres notifications on one connection. They
// are the fast path alone: every waiter also looks by itself after a while, so a lost connection makes things slower, not
// wrong.
import { setTimeout as sleep } from "node:timers/promises";
import { type Connection, type DatabaseOptions, openConnection } from "#libs/database.ts";
import type { Logger } from "#libs/log.ts";
import { type RefreshNotices, refreshNotices } from "./refresh-notices.ts";

/** What can have happened: an invalidation was committed, or a proxy acknowledged one. */
export type LeaseChannel = "lease_invalidations" | "lease_acknowledgements";

/** Signals of all vault processes. */
export interface LeaseSignals {
  /** How many there were. Take it before looking, and wait for the next one after it: so none gets lost in between. */
  count(channel: LeaseChannel): number;
  /** Resolves when there were more than `seen`, after the time given, at `stop`, or when the signal fires. */
  next(channel: LeaseChannel, seen: number, timeoutMs: number, signal?: AbortSignal): Promise<void>;
  /** Refreshes that proxies with a lease are told of. */
  readonly refreshes: RefreshNotices;
  /** Fires at `stop`: whoever serves until then ends. */
  readonly stopping: AbortSignal;
  stop(): Promise<void>;
}

const retryMs = 1_000;
const notifyRefreshes = "select pg_notify('lease_refreshes', $1)";

/** Starts listening, and again after a loss. */
export function listenForLeases(database: DatabaseOptions, log: Logger): LeaseSignals {
  const counts = { lease_invalidations: 0, lease_acknowledgements: 0 };
  const waiting: Record<LeaseChannel, Set<() => void>> = {
    lease_invalidations: new Set(),
    lease_acknowledgements: new Set(),
  };
  const ending = new AbortController();
  let connection: Connection | undefined;
  const refreshes = refreshNotices(async (payload) => connection?.query(notifyRefreshes, [payload]));

  function signal(channel: LeaseChannel): void {
    counts[channel] += 1;
    for (const wake of waiting[channel]) wake();
  }

  async function listen(): Promise<void> {
    connection = await openConnection(database);
    const lost = Promise.withResolvers<void>();
    connection.onLost(lost.resolve);
    connection.onNotification((channel, payload) => {
      if (channel === "lease_invalidations" || channel === "lease_acknowledgements") signal(channel);
      if (channel === "lease_refreshes") refreshes.hear(payload);
    });
    await connection.query("listen lease_invalidations; listen lease_acknowledgements; listen lease_refreshes");
    // What was said while nobody listened.
    signal("lease_invalidations");
    signal("lease_acknowledgements");
    ending.signal.addEventListener("abort", () => lost.resolve(), { once: true });
    await lost.promise;
  }

  async function listenAgain(): Promise<void> {
    while (!ending.signal.aborted) {
      await listen().catch((error: unknown) => log.warn({ err: error }, "cannot listen for leases"));
      await connection?.end().catch(() => undefined);
      connection = undefined;
      await sleep(retryMs, undefined, { signal: ending.signal }).catch(() => undefined);
    }
  }

  const listening = listenAgain();
  return {
    count: (channel) => counts[channel],
    async next(channel, seen, timeoutMs, signal) {
      if (counts[channel] > seen || ending.signal.aborted || signal?.aborted) return;
      await new Promise<void>((resolve) => {
        const wake = () => {
          clearTimeout(timer);
          waiting[channel].delete(wake);
          signal?.removeEventListener("abort", wake);
          resolve();
        };
        const timer = setTimeout(wake, timeoutMs);
        waiting[channel].add(wake);
        signal?.addEventListener("abort", wake);
      });
    },
    refreshes,
    stopping: ending.signal,
    async stop() {
      ending.abort();
      for (const wakes of Object.values(waiting)) for (const wake of wakes) wake();
      await listening;
    },
  };
}
