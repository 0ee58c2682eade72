// Notes each change of an account, whoever makes it, for those who watch. See services/account/account-changes.ts for what the
// columns are for.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of statements) await sql.raw(statement).execute(db);
}

const statements = [
  `create table account_changes (
    xact xid8 not null default pg_current_xact_id(),
    number int8 generated always as identity,
    project_id text not null,
    account_id text not null,
    environment environment not null,
    changes_use boolean not null,
    create_time moment not null default clock_timestamp(),
    primary key (xact, number)
  )`,
  "create index account_changes_by_time on account_changes (create_time)",
  // The last transaction whose changes may have been deleted.
  `create table account_changes_pruned (
    xact xid8 not null,
    is_only boolean primary key default true check (is_only)
  )`,
  "insert into account_changes_pruned (xact) values ('0')",

  // As the owner: the service can neither make a change up nor leave one out. A column that comes later changes the use until
  // this list says otherwise: so nothing is missed, at the worst a lease is asked for again.
  `create function note_account_changes() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
  declare
    told constant text[] := array['name', 'health', 'error', 'update_time', 'credential_generation', 'expire_time',
      'last_refresh_time', 'next_refresh_time', 'grant_expire_time', 'grant_notice_time'];
  begin
    if tg_op = 'INSERT' then
      insert into account_changes (project_id, account_id, environment, changes_use)
        select project_id, id, environment, true from fresh;
    elsif tg_op = 'DELETE' then
      insert into account_changes (project_id, account_id, environment, changes_use)
        select project_id, id, environment, true from stale;
    else
      insert into account_changes (project_id, account_id, environment, changes_use)
        select project_id, id, coalesce(fresh.environment, stale.environment),
          to_jsonb(stale) - told is distinct from to_jsonb(fresh) - told
        from stale full join fresh using (project_id, id) where stale is distinct from fresh;
    end if;
    if found then
      perform pg_notify('account_changes', '');
    end if;
    return null;
  end $$`,
  "revoke all on function note_account_changes() from public",
  // Each has other rows before and after, so none can stand for all.
  `create trigger note_inserts after insert on accounts
    referencing new table as fresh for each statement execute function note_account_changes()`,
  `create trigger note_updates after update on accounts
    referencing old table as stale new table as fresh for each statement execute function note_account_changes()`,
  `create trigger note_deletes after delete on accounts
    referencing old table as stale for each statement execute function note_account_changes()`,
  // With the state in them, so that usable accounts are counted without a look at the rows.
  "drop index accounts_in_order, accounts_by_user, accounts_by_app, accounts_by_oauth_app",
  `create index accounts_in_order on accounts (project_id, environment, create_time, id)
    include (state) where state <> 'REVOKED'`,
  `create index accounts_by_user on accounts (project_id, environment, external_user_id, create_time, id)
    include (state) where state <> 'REVOKED'`,
  `create index accounts_by_app on accounts (project_id, environment, app_slug, create_time, id)
    include (state) where state <> 'REVOKED'`,
  `create index accounts_by_oauth_app on accounts (project_id, oauth_app_id, environment, create_time, id)
    include (state) where state <> 'REVOKED'`,
  // Of a million accounts few are not well, and those are looked for.
  `create index accounts_unwell on accounts (project_id, environment, health, create_time, id)
    include (state) where state <> 'REVOKED' and health <> 'HEALTHY'`,
  "revoke insert, update on account_changes from deputy_account",
  "revoke insert, delete on account_changes_pruned from deputy_account",
];
