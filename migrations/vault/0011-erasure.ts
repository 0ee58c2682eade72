// Finds what is kept of a user, to erase it: services/vault/erase-user.ts.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const table of ["credentials", "revocations", "authorizations"]) {
    await sql`create index ${sql.raw(`${table}_of_user`)} on ${sql.table(table)}
      (project_id, environment, external_user_id)`.execute(db);
  }
}
