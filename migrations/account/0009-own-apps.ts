// Apps of the projects' own, beside the catalog's files.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table own_apps (
      project_id text not null references projects (id),
      slug text not null,
      -- YAML or JSON, as it was judged.
      definition text not null,
      create_time moment not null,
      update_time moment not null,
      primary key (project_id, slug)
    )`.execute(db);
}
