// Keys that webhooks are signed with, and the order in which credentials change. See services/vault/webhook-keys.ts and
// services/vault/credential-changes.ts.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table webhook_keys (
      project_id text not null,
      webhook_id text not null,
      environment text not null check (environment in ('development', 'production')),
      generation int8 not null check (generation > 0),
      blob bytea, data_key_id text, wrapped_data_key bytea, kek_id text,
      create_time timestamptz not null default now(),
      update_time timestamptz not null default now(),
      destroy_time timestamptz,
      primary key (project_id, webhook_id),
      check (num_nulls(blob, data_key_id, wrapped_data_key, kek_id) in (0, 4)),
      check ((destroy_time is null) = (blob is not null))
    )`.execute(db);
  await sql`create index webhook_keys_by_kek on webhook_keys (kek_id, data_key_id) where kek_id is not null`.execute(
    db,
  );
  await sql`revoke delete on webhook_keys from deputy_vault`.execute(db);
  // The transaction that changed last what others are told of a credential.
  await sql`alter table credentials add column change_id xid8 not null default pg_current_xact_id()`.execute(db);
  await sql`create index credentials_by_change on credentials (change_id, project_id, account_id)`.execute(db);
  // A trigger, so that no statement can forget it. Intents and rewrapped keys concern nobody.
  await sql`
    create function note_credential_change() returns trigger language plpgsql as $$
    begin
      new.change_id := pg_current_xact_id();
      return new;
    end $$`.execute(db);
  await sql`
    create trigger credentials_change before update on credentials for each row
    when ((old.state, old.state_reason, old.generation, old.failures,
        old.expire_time, old.last_refresh_time, old.next_refresh_time)
      is distinct from (new.state, new.state_reason, new.generation, new.failures,
        new.expire_time, new.last_refresh_time, new.next_refresh_time))
    execute function note_credential_change()`.execute(db);
}
