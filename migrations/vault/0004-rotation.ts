// Rotation of key-encryption keys: which one everything is to be wrapped under, which ones each process holds, and an index by
// which the rows under another one are found. Shadowed credentials: imported, and refreshed by another system still.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  // Data key ids are random: several processes that start at different ones meet few of each other's rows.
  for (const table of ["credentials", "oauth_clients", "authorizations", "revocations"]) {
    await sql`create index ${sql.raw(`${table}_by_kek`)} on ${sql.table(table)} (kek_id, data_key_id)
      where kek_id is not null`.execute(db);
  }
  await sql`
    create table key_rotation (
      -- One row: the last one asked for is the one that holds.
      id int primary key default 1 check (id = 1),
      kek_id text not null,
      request_time timestamptz not null default now()
    )`.execute(db);
  await sql`
    create table vault_processes (
      process_id text primary key,
      kek_ids text[] not null,
      report_time timestamptz not null default now()
    )`.execute(db);
  await sql`
    alter table credentials
      add column shadow boolean not null default false,
      -- Another system refreshes it: a second use of its refresh token would kill the grant for both.
      add constraint shadow_is_never_due check (not shadow or next_refresh_time is null)`.execute(db);
}
