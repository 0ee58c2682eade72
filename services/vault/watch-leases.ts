// WatchLeases: tells one proxy of the leases that are over, in order, and hears what it acknowledges; and of those whose
// credential was refreshed, which nobody waits for. A stream ends when the proxy goes, when another one takes its place, or when
// this process stops; the proxy then holds nothing and begins anew.
import { invalidField, StatusError } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import {
  type LeaseInvalidation as LeaseInvalidationMessage,
  LeaseInvalidationReason,
  type WatchLeasesHello,
  type WatchLeasesRequest,
  type WatchLeasesResponse,
} from "#proto/deputy/vault/v1/leases.ts";
import { leaseMessage } from "./credential-messages.ts";
import { type LeaseInvalidation, listInvalidationsAfter } from "./lease-invalidations.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import { acknowledge, deleteWatcher, heartbeatMs, putWatcher, type Watcher } from "./lease-watchers.ts";
import { type RefreshedLease, type RefreshedLeaseOptions, refreshedLeases } from "./refreshed-leases.ts";
import type { VaultDatabase } from "./schema.ts";

/** What the handler needs. */
export interface WatchLeasesOptions extends RefreshedLeaseOptions {
  readonly signals: LeaseSignals;
}

// One query's worth; what is over is read in the next round.
const batchSize = 500;

// How often the acknowledgements of a burst are written: each is a round trip to the database.
const burstMs = 50;

/** Serves one stream. */
export async function* watchLeases(
  options: WatchLeasesOptions,
  requests: AsyncIterable<WatchLeasesRequest>,
  call: Call,
): AsyncGenerator<WatchLeasesResponse> {
  const { db, signals } = options;
  if (signals.stopping.aborted) throw new StatusError("UNAVAILABLE", "STOPPING", "This vault process is stopping.");
  const incoming = requests[Symbol.asyncIterator]();
  const { proxyId, takesBatches } = await readHello(incoming);
  const watcher = { proxyId, watchId: newId("wat") };
  let sent = await putWatcher(db, watcher);
  let fault: unknown;
  const leaving = new AbortController();
  const ended = AbortSignal.any([call.signal, signals.stopping, leaving.signal]);
  hear(db, watcher, incoming, () => sent)
    .catch((error: unknown) => {
      fault = error;
    })
    .finally(() => leaving.abort());
  const refreshed = refreshedLeases(options, watcher.proxyId);
  try {
    while (!ended.aborted) {
      yield { message: { $case: "heartbeat", value: { time: new Date() } } };
      const dueMs = performance.now() + heartbeatMs;
      for (let leftMs = heartbeatMs; leftMs > 0 && !ended.aborted; leftMs = dueMs - performance.now()) {
        const seen = signals.count("lease_invalidations");
        const rows = await listInvalidationsAfter(db, sent, batchSize);
        sent = rows.at(-1)?.sequence ?? sent;
        yield* invalidationMessages(rows.map(invalidationMessage), takesBatches);
        for (const refresh of refreshed.take()) {
          yield { message: { $case: "invalidation", value: refreshMessage(refresh, sent) } };
        }
        const attention = AbortSignal.any([ended, refreshed.ready]);
        if (rows.length < batchSize) await signals.next("lease_invalidations", seen, leftMs, attention);
      }
    }
  } finally {
    refreshed.stop();
  }
  if (fault !== undefined) throw fault;
}

async function readHello(incoming: AsyncIterator<WatchLeasesRequest>): Promise<WatchLeasesHello> {
  const first = await incoming.next();
  const message = first.done ? undefined : first.value.message;
  if (message?.$case !== "hello") throw invalidField("hello", "is required as the first message");
  return message.value;
}

// One that does not know batches would take one for a heartbeat, and acknowledge it with the next word that it does know.
function* invalidationMessages(
  invalidations: LeaseInvalidationMessage[],
  takesBatches: boolean,
): Generator<WatchLeasesResponse> {
  if (invalidations.length > 1 && takesBatches) yield { message: { $case: "invalidations", value: { invalidations } } };
  else for (const value of invalidations) yield { message: { $case: "invalidation", value } };
}

/** Notes what the proxy says until it says goodbye. A stream that only breaks off says nothing of what the proxy holds. */
async function hear(
  db: VaultDatabase,
  watcher: Watcher,
  incoming: AsyncIterator<WatchLeasesRequest>,
  sent: () => bigint,
): Promise<void> {
  let notedMs = 0;
  for (let next = await incoming.next(); !next.done; next = await incoming.next()) {
    const { message } = next.value;
    if (message?.$case === "goodbye") return deleteWatcher(db, watcher);
    if (message?.$case !== "acknowledgedSequence") throw invalidField("hello", "comes once, as the first message");
    if (message.value > sent()) throw invalidField("acknowledged_sequence", "is of an invalidation that was not sent");
    // Of a thousand accounts that are destroyed together each is acknowledged. What has been sent since is acknowledged too,
    // in a moment, so that the last one of a burst is always written.
    const isFollowed = message.value > 0n && message.value < sent();
    if (isFollowed && performance.now() - notedMs < burstMs) continue;
    notedMs = performance.now();
    if (!(await acknowledge(db, watcher, message.value))) {
      throw new StatusError("ABORTED", "WATCH_SUPERSEDED", "Another stream of this proxy has taken over.");
    }
  }
}

function refreshMessage({ projectId, accountId, lease }: RefreshedLease, sequence: bigint) {
  const reason = LeaseInvalidationReason.REFRESHED;
  return { sequence, projectId, accountId, reason, lease: lease && leaseMessage(lease) };
}

function invalidationMessage({ sequence, projectId, accountId, reason }: LeaseInvalidation) {
  return { sequence, projectId, accountId, reason: LeaseInvalidationReason[reason], lease: undefined };
}
