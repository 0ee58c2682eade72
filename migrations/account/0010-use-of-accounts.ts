// Of an account that is not active nothing matters to who uses it: it is used by nobody. So the second step of a revocation is no
// change of use, and whether anything else has changed is not looked at where the state says it already.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql.raw(noteAccountChanges).execute(db);
}

// As in 0008, but for `changes_use` of an update.
const noteAccountChanges = `create or replace function note_account_changes() returns trigger
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
        case
          when stale.state <> 'ACTIVE' and fresh.state <> 'ACTIVE' then false
          when stale.state <> fresh.state then true
          else to_jsonb(stale) - told is distinct from to_jsonb(fresh) - told
        end
      from stale full join fresh using (project_id, id) where stale is distinct from fresh;
  end if;
  if found then
    perform pg_notify('account_changes', '');
  end if;
  return null;
end $$`;
