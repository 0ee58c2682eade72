// The leases that are over, as a numbered list that every vault relays to the proxies that watch at it. The numbers are in the
// order of the commits, so that one who has read up to a number has missed nothing below it. See lease-watchers.ts.
import { type RawBuilder, type Selectable, sql } from "kysely";
import type { LeaseSignals } from "./lease-signals.ts";
import { isAwaited, leaseMs } from "./lease-watchers.ts";
import type { LeaseInvalidationsTable, VaultDatabase } from "./schema.ts";

/** A row of the table. */
export type LeaseInvalidation = Pick<
  Selectable<LeaseInvalidationsTable>,
  "sequence" | "projectId" | "accountId" | "reason"
>;

// Two clocks of the same speed differ by microseconds over a lease; what else passes here is the way of the answer.
const marginMs = 250;

// A notification that was lost costs no more than this.
const pollMs = 250;

/**
 * Ends the leases of accounts, with the transaction that changes their credentials; call it last in there. The lock holds back
 * other transactions until this one has ended: without it a number could become visible after a higher one.
 */
export async function insertInvalidations(
  transaction: VaultDatabase,
  { projectId, accountIds }: { readonly projectId: string; readonly accountIds: readonly string[] },
  reason: LeaseInvalidation["reason"],
): Promise<void> {
  if (accountIds.length === 0) return;
  await sql`select pg_advisory_xact_lock(hashtextextended('lease_invalidations', 0))`.execute(transaction);
  await sql`
    with inserted as (
      insert into lease_invalidations (project_id, account_id, reason)
      select ${projectId}, account_id, ${reason} from unnest(${accountIds}::text[]) as account_id
    )
    select pg_notify('lease_invalidations', '')`.execute(transaction);
}

/** The next ones, in order. */
export async function listInvalidationsAfter(
  db: VaultDatabase,
  sequence: bigint,
  limit: number,
): Promise<readonly LeaseInvalidation[]> {
  return db
    .selectFrom("leaseInvalidations")
    .select(["sequence", "projectId", "accountId", "reason"])
    .where("sequence", ">", sequence)
    .orderBy("sequence")
    .limit(limit)
    .execute();
}

/**
 * Waits until no proxy can use a lease of these accounts that was given before their last invalidation: one round trip when
 * all proxies answer, the lease time when one does not. A repeat after a crash waits like the first call.
 */
export async function untilLeasesEnd(
  { db, signals }: { readonly db: VaultDatabase; readonly signals: LeaseSignals },
  accounts: { readonly projectId: string; readonly accountIds: readonly string[] },
): Promise<void> {
  // All of them were committed before now, if not long before.
  const endMs = performance.now() + leaseMs + marginMs;
  for (;;) {
    const seen = signals.count("lease_acknowledgements");
    if (!(await isAwaited(db, lastInvalidation(accounts)))) return;
    const leftMs = endMs - performance.now();
    if (leftMs <= 0) return;
    await signals.next("lease_acknowledgements", seen, Math.min(leftMs, pollMs));
  }
}

/** Deletes what no lease can remember. */
export async function pruneInvalidations(db: VaultDatabase): Promise<void> {
  await sql`delete from lease_invalidations where create_time < clock_timestamp() - interval '5 minutes'`.execute(db);
}

/** Of these accounts; null when none of them has one. */
function lastInvalidation({
  projectId,
  accountIds,
}: {
  readonly projectId: string;
  readonly accountIds: readonly string[];
}): RawBuilder<bigint | null> {
  return sql`(select max(sequence) from lease_invalidations
    where project_id = ${projectId} and account_id = any(${accountIds}))`;
}
