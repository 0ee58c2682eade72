// Which proxies may hold leases. The promise: once DestroyCredentials has answered, no proxy starts a request with a destroyed
// credential, whatever is cut off, stopped or restarted. The argument, with every time on the database's clock:
//
//   1  A lease is given only to a proxy that was heard within the last `watchMs` on a WatchLeases stream, to any vault: its
//      row here is the truth, so it does not matter which vault leases, which relays and which destroys.
//   2  A proxy counts `leaseMs` from before it asked, by its own clocks. So a lease that is in use at some moment was asked
//      for at most `leaseMs` before, and its proxy was heard at most `leaseMs + watchMs` before.
//   3  Destroying commits the destroyed rows and an invalidation in one transaction. From then on no vault can give a lease.
//      After it, whoever destroys reads the watchers of the last `leaseMs + watchMs` that have not acknowledged it; while
//      there is none left, or from `leaseMs` after the commit on, no lease is in use, and it answers.
//   4  A proxy acknowledges after it has dropped what it holds, what it is asking for, and what it has in flight.
//   5  A new stream takes the place of the proxy's old one and begins behind every invalidation there is. That is sound because
//      the proxy uses nothing that it asked for before the vault's first message on the new stream.
//
// What a refresh sends to a proxy takes the place of a lease that the proxy has asked for, and ends with it: 2 stays true.
//
// A proxy that has died, or that is stopped, is waited for by those who destroy within the lease time after it, and by nobody
// later. A vault that dies loses nothing: its proxies go to another, or age out. What a clock cannot see remains: a proxy that is
// stopped between its last look at the clock and the system call that follows sends one request when it goes on.
import { type RawBuilder, sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import type { VaultDatabase } from "./schema.ts";

/** For how long a lease may be used. */
export const leaseMs = 10_000;

/** How often a watching proxy is heard. */
export const heartbeatMs = 1_000;

// Some heartbeats may be late: a proxy that has missed five gets no leases until it is heard again.
const watchMs = 5_000;

/** A stream of a proxy. */
export interface Watcher {
  readonly proxyId: string;
  readonly watchId: string;
}

/** Begins a watch in the place of the proxy's earlier one. Gives the sequence after which its invalidations begin. */
export async function putWatcher(db: VaultDatabase, { proxyId, watchId }: Watcher): Promise<bigint> {
  const { acknowledgedSequence } = await db
    .insertInto("leaseWatchers")
    .values({
      proxyId,
      watchId,
      acknowledgedSequence: sql<bigint>`(select coalesce(max(sequence), 0) from lease_invalidations)`,
      lastSeenTime: sql<Date>`clock_timestamp()`,
    })
    .onConflict((conflict) =>
      conflict.column("proxyId").doUpdateSet((eb) => ({
        watchId: eb.ref("excluded.watchId"),
        acknowledgedSequence: eb.ref("excluded.acknowledgedSequence"),
        lastSeenTime: eb.ref("excluded.lastSeenTime"),
      })),
    )
    .returning("acknowledgedSequence")
    .executeTakeFirstOrThrow();
  return acknowledgedSequence;
}

/**
 * Notes that the proxy was heard, and wakes those who wait for what it acknowledges, in every vault process. False when another
 * stream has taken the place of this one.
 */
export async function acknowledge(
  db: VaultDatabase,
  { proxyId, watchId }: Watcher,
  sequence: bigint,
): Promise<boolean> {
  const heard = await sql`
    with before as (
      select proxy_id, acknowledged_sequence from lease_watchers
      where proxy_id = ${proxyId} and watch_id = ${watchId} for update
    ), heard as (
      update lease_watchers
      set acknowledged_sequence = greatest(before.acknowledged_sequence, ${sequence}), last_seen_time = clock_timestamp()
      from before where lease_watchers.proxy_id = before.proxy_id
      returning before.acknowledged_sequence < ${sequence} as is_news
    )
    select case when is_news then pg_notify('lease_acknowledgements', '')::text end from heard`.execute(db);
  return heard.rows.length === 1;
}

/** Forgets a proxy that has said that it holds nothing, and wakes those who wait for it. */
export async function deleteWatcher(db: VaultDatabase, { proxyId, watchId }: Watcher): Promise<void> {
  await db.deleteFrom("leaseWatchers").where("proxyId", "=", proxyId).where("watchId", "=", watchId).execute();
  await sql`select pg_notify('lease_acknowledgements', '')`.execute(db);
}

/** Throws unless the proxy may be given leases. */
export async function requireWatching(db: VaultDatabase, proxyId: string): Promise<void> {
  const found = await db
    .selectFrom("leaseWatchers")
    .select("proxyId")
    .where("proxyId", "=", proxyId)
    .where(seenWithin(watchMs))
    .executeTakeFirst();
  if (found !== undefined) return;
  throw new StatusError("FAILED_PRECONDITION", "WATCH_REQUIRED", "Leases are given to proxies that watch them alone.");
}

/** Whether a proxy that may hold leases has yet to acknowledge an invalidation; of none, nobody has. */
export async function isAwaited(db: VaultDatabase, sequence: RawBuilder<bigint | null>): Promise<boolean> {
  const found = await db
    .selectFrom("leaseWatchers")
    .select("proxyId")
    .where("acknowledgedSequence", "<", sequence)
    .where(seenWithin(watchMs + leaseMs))
    .limit(1)
    .executeTakeFirst();
  return found !== undefined;
}

/** Deletes the rows of proxies that are long gone. */
export async function pruneWatchers(db: VaultDatabase): Promise<void> {
  await sql`delete from lease_watchers where last_seen_time < clock_timestamp() - interval '5 minutes'`.execute(db);
}

function seenWithin(ms: number) {
  return sql<boolean>`last_seen_time > clock_timestamp() - make_interval(secs => ${ms / 1000})`;
}
