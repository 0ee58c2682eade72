// What was done and by whom, and what happened that others want to hear of: both are written in the transaction of the change
// that they tell, so that neither is there without the other.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of statements) await sql.raw(statement).execute(db);
}

const statements = [
  // Without a reference to the project, which it outlives.
  `create table audit_entries (
    project_id text not null,
    id text not null,
    create_time moment not null,
    actor text not null,
    action text not null,
    resource_id text not null,
    request_id text not null,
    before jsonb,
    after jsonb,
    primary key (project_id, id)
  )`,
  "create index audit_entries_in_order on audit_entries (project_id, create_time, id)",
  "create index audit_entries_by_resource on audit_entries (project_id, resource_id, create_time, id)",
  "revoke update, delete on audit_entries from deputy_account",

  `create table events (
    project_id text not null,
    id text not null,
    environment environment not null,
    type text not null,
    external_user_id text not null,
    account_id text not null,
    create_time moment not null,
    data jsonb not null,
    -- In which order the events of an account happened, also within a millisecond.
    sequence int8 not null generated always as identity,
    primary key (project_id, id)
  )`,
  "create index events_in_order on events (project_id, environment, create_time, id)",
  "create index events_by_account on events (project_id, environment, account_id, create_time, id)",
];
