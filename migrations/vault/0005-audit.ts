// The audit: entries, the checkpoints that seal them into one signed chain, and the entries that wait for a checkpoint. The
// vault's role may add entries and checkpoints and read them, and nothing else. See services/vault/audit-chain.ts.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table audit_entries (
      id int8 generated always as identity primary key,
      -- When it was written, to the millisecond: as precise as what is hashed.
      time timestamptz(3) not null default clock_timestamp(),
      -- How long before that it happened: entries of leases are written in batches.
      delay_ms int not null default 0 check (delay_ms >= 0),
      action text not null,
      service text not null,
      subject text not null default '',
      project_id text not null default '',
      environment text not null default '',
      external_user_id text not null default '',
      -- The account; for what is no account's, the OAuth app or the record.
      account_id text not null default '',
      purpose text not null default '',
      request_id text not null default '',
      reason text not null default ''
    )`.execute(db);
  await sql`create index audit_entries_by_account on audit_entries (project_id, account_id, id)`.execute(db);
  await sql`
    create table audit_checkpoints (
      number int8 primary key check (number > 0),
      time timestamptz(3) not null,
      entry_ids int8[] not null check (cardinality(entry_ids) > 0),
      -- The chain after each entry: they tell which one was changed.
      entry_hashes bytea[] not null check (cardinality(entry_hashes) = cardinality(entry_ids)),
      prev_hash bytea not null check (length(prev_hash) = 32),
      hash bytea not null check (length(hash) = 32),
      key_id text not null,
      signature bytea not null
    )`.execute(db);
  await sql`
    create table audit_pending (
      id int8 primary key references audit_entries (id)
    )`.execute(db);
  // As the owner: the vault's role can neither put an entry on the list by itself nor forget to.
  await sql`
    create function note_pending_audit_entries() returns trigger
      language plpgsql security definer set search_path = public, pg_temp as $$
    begin
      insert into audit_pending select id from fresh;
      return null;
    end $$`.execute(db);
  await sql`revoke all on function note_pending_audit_entries() from public`.execute(db);
  await sql`create trigger note_pending after insert on audit_entries
    referencing new table as fresh for each statement execute function note_pending_audit_entries()`.execute(db);
  await sql`revoke update, delete on audit_entries, audit_checkpoints from deputy_vault`.execute(db);
  await sql`revoke insert, update on audit_pending from deputy_vault`.execute(db);
}
