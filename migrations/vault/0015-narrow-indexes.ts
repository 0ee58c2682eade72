// Indexes begin with the column that narrows. To Postgres every index that begins with project_id looks as good as the primary key
// as long as a table has not been analyzed, and it may keep to one for minutes: then whoever stores a credential reads all of its
// project's, which makes a large import into a new vault slower with each account.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`drop index revocations_by_account`.execute(db);
  await sql`create index revocations_by_account on revocations (account_id, project_id)`.execute(db);
  for (const table of ["credentials", "revocations"]) {
    const index = sql.ref(`${table}_of_user`);
    await sql`drop index ${index}`.execute(db);
    await sql`create index ${index} on ${sql.table(table)} (external_user_id, project_id, environment)`.execute(db);
  }
}
