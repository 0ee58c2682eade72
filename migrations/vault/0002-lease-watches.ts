// Who may hold leases, and which leases are over. Both tables are short-lived and belong to no project: a proxy watches over
// all of them, and rows are pruned after minutes. See services/vault/lease-watchers.ts.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table lease_watchers (
      -- An id that a proxy process makes at its start.
      proxy_id text primary key,
      -- The stream that it has now.
      watch_id text not null,
      acknowledged_sequence int8 not null,
      last_seen_time timestamptz not null
    )`.execute(db);
  await sql`
    create table lease_invalidations (
      -- In the order of the commits: whoever inserts holds a lock until its commit.
      sequence int8 generated always as identity primary key,
      project_id text not null,
      account_id text not null,
      reason text not null check (reason in ('REVOKED', 'RECONNECTED')),
      create_time timestamptz not null default clock_timestamp()
    )`.execute(db);
  await sql`create index lease_invalidations_by_account on lease_invalidations (project_id, account_id)`.execute(db);
}
