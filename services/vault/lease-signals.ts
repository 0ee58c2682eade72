// What vault processes tell one another about leases: see libs/database-signals.ts.
import type { DatabaseOptions } from "#libs/database.ts";
import { listenForSignals, type Signals } from "#libs/database-signals.ts";
import type { Logger } from "#libs/log.ts";
import { type RefreshNotices, refreshNotices } from "./refresh-notices.ts";

/** What can have happened: an invalidation was committed, a proxy acknowledged one, or credentials were refreshed. */
export type LeaseChannel = (typeof channels)[number];

/** Signals of all vault processes. */
export interface LeaseSignals extends Signals<LeaseChannel> {
  /** Refreshes that proxies with a lease are told of. */
  readonly refreshes: RefreshNotices;
}

const channels = ["lease_invalidations", "lease_acknowledgements", "lease_refreshes"] as const;

/** Starts listening, and again after a loss. */
export function listenForLeases(database: DatabaseOptions, log: Logger): LeaseSignals {
  const refreshes = refreshNotices((payload) => signals.notify("lease_refreshes", payload));
  const onPayload = (channel: LeaseChannel, payload: string) => {
    if (channel === "lease_refreshes") refreshes.hear(payload);
  };
  const signals = listenForSignals({ database, channels, log, onPayload });
  return { ...signals, refreshes };
}
