// App overrides: what an administrator has filled in for the users of a project. With them OAuth apps can be changed and
// deleted; one that an override chooses stays, so that no connection falls back to another OAuth app unseen.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of statements) await sql.raw(statement).execute(db);
}

const statements = [
  `create table app_overrides (
    project_id text not null references projects (id),
    id text not null,
    app_slug text not null,
    name text not null,
    oauth_app_id text,
    fields jsonb not null,
    create_time moment not null,
    update_time moment not null,
    primary key (project_id, id),
    foreign key (project_id, oauth_app_id) references oauth_apps (project_id, id)
  )`,
  "create unique index app_overrides_by_name on app_overrides (project_id, name)",
  "create index app_overrides_in_order on app_overrides (project_id, create_time, id)",
  "create index app_overrides_by_oauth_app on app_overrides (project_id, oauth_app_id)",

  "grant update, delete on oauth_apps to deputy_account",
];
