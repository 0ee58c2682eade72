// Apps of the projects' own, beside the catalog's files, and which credentials live by one: those are refreshed by project and
// app, so that one tenant's due rows are never in the way of another's who has the same slug.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table own_apps (
      project_id text not null,
      slug text not null,
      -- YAML or JSON, as it was judged.
      definition text not null,
      -- What is looked for over many apps, out of the definition.
      is_oauth boolean not null,
      revoke_effect text not null,
      create_time timestamptz not null default now(),
      update_time timestamptz not null default now(),
      -- Kept after its end: grants are still to be revoked at its provider.
      destroy_time timestamptz,
      primary key (project_id, slug)
    )`.execute(db);
  await sql`alter table credentials add column own_app boolean not null default false`.execute(db);
  await sql`create index credentials_due_of_own_app on credentials (project_id, app_slug, next_refresh_time)
    where own_app and state in ('ACTIVE', 'UNKNOWN') and next_refresh_time is not null`.execute(db);
  await sql`
    alter table lease_invalidations
      drop constraint lease_invalidations_reason_check,
      add constraint lease_invalidations_reason_check check (reason in ('REVOKED', 'RECONNECTED', 'CHANGED'))`.execute(
    db,
  );
}
