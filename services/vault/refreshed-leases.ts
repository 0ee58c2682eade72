// What one proxy's stream is to tell of refreshes: for accounts that this process has leased to it a moment ago, the new lease.
// The proxy uses it in the place of the one that it holds and for no longer than that one lasts, so nobody's token is asked for
// again: the right is the one that was given. Where another process gave the lease, or the new one cannot be made, the proxy is
// told without it, and only where the old access token has died; else it goes on with that to the lease's end.
import type { Catalog } from "#libs/catalog.ts";
import type { Actor } from "./audit-entries.ts";
import type { AuditWriter } from "./audit-writer.ts";
import { findCredential, isUsable } from "./credentials.ts";
import { type Lease, leaseOf } from "./lease.ts";
import type { LeaseGrants } from "./lease-grants.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import type { RefreshNotice } from "./refresh-notices.ts";
import { isValid } from "./refresh-times.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";

/** What they are made from. */
export interface RefreshedLeaseOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly signals: Pick<LeaseSignals, "refreshes">;
  readonly grants: LeaseGrants;
  readonly audit: AuditWriter;
}

/** A refresh to tell of. */
export interface RefreshedLease extends RefreshNotice {
  readonly lease: Lease | undefined;
}

/** Those of one stream. */
export interface RefreshedLeases {
  /** What has come since; each once. */
  take(): readonly RefreshedLease[];
  /** Fires when there is something to take, until the next `take`. */
  readonly ready: AbortSignal;
  stop(): void;
}

// Nobody called: the entry of the lease before tells for whom it was.
const watchingProxy: Actor = { service: "proxy", subject: "", requestId: "" };

// A proxy that does not read is told no more.
const mostWaiting = 1_000;

/** Listens for one proxy. */
export function refreshedLeases(options: RefreshedLeaseOptions, proxyId: string): RefreshedLeases {
  let waiting: RefreshedLease[] = [];
  let making = 0;
  let attention = new AbortController();

  // Beside the stream, not in it: a key service that is slow must not hold up its heartbeats.
  async function prepare(notice: RefreshNotice, isLeased: boolean): Promise<void> {
    const lease = isLeased ? await renewedLease(options, notice).catch(() => undefined) : undefined;
    if (lease === undefined && !notice.accessEnded) return;
    waiting.push({ ...notice, lease });
    attention.abort();
  }

  const stop = options.signals.refreshes.listen((notice) => {
    const isLeased = options.grants.has(proxyId, notice);
    if ((!isLeased && !notice.accessEnded) || waiting.length + making >= mostWaiting) return;
    making += 1;
    prepare(notice, isLeased).finally(() => {
      making -= 1;
    });
  });

  return {
    take() {
      const taken = waiting;
      waiting = [];
      attention = new AbortController();
      return taken;
    },
    get ready() {
      return attention.signal;
    },
    stop,
  };
}

async function renewedLease(options: RefreshedLeaseOptions, key: RefreshNotice): Promise<Lease | undefined> {
  const row = await findCredential(options.db, key);
  return row !== undefined && isUsable(row) && isValid(row)
    ? leaseOf(options, row, { refreshed: true, actor: watchingProxy })
    : undefined;
}
