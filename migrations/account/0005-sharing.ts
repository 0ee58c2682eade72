// Owners and sharing of accounts, the member for whom a connect token was made, and what erasing a user needs: indexes over
// tombstones, the right to delete what only concerned the user, and the one change of audit entries that is allowed.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of statements) await sql.raw(statement).execute(db);
}

const statements = [
  // What was there before belongs to its project, and so to every member.
  `alter table accounts
    add column owner_member_id text not null default '',
    add column sharing text not null default 'WORKSPACE' check (sharing in ('PRIVATE', 'WORKSPACE', 'MEMBERS')),
    add column shared_member_ids text[] not null default '{}',
    add constraint members_are_listed check ((sharing = 'MEMBERS') = (cardinality(shared_member_ids) > 0))`,
  `alter table connect_tokens
    add column actor_member_id text not null default '',
    add column actor_role text not null default ''`,

  "create index accounts_revoked on accounts (project_id, environment, create_time, id) where state = 'REVOKED'",
  `create index accounts_revoked_by_user on accounts (project_id, environment, external_user_id, create_time, id)
    where state = 'REVOKED'`,
  "create index connections_by_user on connections (project_id, environment, external_user_id)",
  "create index connections_by_token on connections (project_id, connect_token_id)",
  "create index events_by_user on events (project_id, environment, external_user_id)",
  "grant delete on connect_tokens, connections, external_users to deputy_account",

  // The service may add audit entries and read them. This, as the owner, is all that may change in one: who a user was, and what
  // was told of the user's things.
  `create function erase_from_audit(of_project text, resources text[], user_id text, pseudonym text) returns void
    language sql security definer set search_path = public, pg_temp as $$
    update audit_entries
    set actor = case when actor = 'user:' || user_id then 'user:' || pseudonym else actor end,
      before = case when before is null then null else '{"erased": true}'::jsonb end,
      after = case when after is null then null else '{"erased": true}'::jsonb end
    where project_id = of_project and resource_id = any(resources)
  $$`,
  "revoke all on function erase_from_audit(text, text[], text, text) from public",
  "grant execute on function erase_from_audit(text, text[], text, text) to deputy_account",
];
