// What projects, their clients and their users need to be changed, deleted and listed. A project that is deleted stays as a
// row: tombstones of accounts refer to it, and its id must never be another's.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of statements) await sql.raw(statement).execute(db);
}

const statements = [
  `alter table projects
    add column require_key_auth_test boolean not null default false,
    add column delete_time moment`,
  "create index projects_in_order on projects (create_time, id) where delete_time is null",
  "create index api_clients_in_order on api_clients (project_id, create_time, id)",
  "create index external_users_in_order on external_users (project_id, environment, create_time, id)",
  "create index audit_entries_by_actor on audit_entries (project_id, actor, create_time, id)",

  // Columns that say what a row is (its project, its scopes) stay out of reach.
  `grant update (name, app_name, support_email, require_key_auth_test, update_time, delete_time)
    on projects to deputy_account`,
  "grant update (secret_digest, previous_secret_digest, previous_secret_expire_time) on api_clients to deputy_account",
  "grant delete on api_clients, external_users, oauth_apps to deputy_account",
];
