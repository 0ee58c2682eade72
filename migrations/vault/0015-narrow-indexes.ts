// Indexes of the two large tables begin with the column that narrows. To Postgres every index that begins with project_id looks as good
// as the primary key as long as a table has not been analyzed, and it may keep to one for minutes: then whoever stores a credential
// reads all of its project's, which makes a large import into a new vault slower with each account. Partial indexes cannot be taken
// for it, and authorizations are never many.
import { type Kysely, sql } from "kysely";

const narrow = [
  { table: "credentials", index: "credentials_of_user", columns: ["external_user_id", "project_id", "environment"] },
  { table: "revocations", index: "revocations_of_user", columns: ["external_user_id", "project_id", "environment"] },
  { table: "revocations", index: "revocations_by_account", columns: ["account_id", "project_id"] },
];

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  // In the order in which destroying takes the tables, and the new ones first: nobody reads while an index is dropped.
  for (const { table, index, columns } of narrow) {
    const listed = sql.join(columns.map((column) => sql.ref(column)));
    await sql`create index ${sql.ref(`${index}_narrow`)} on ${sql.table(table)} (${listed})`.execute(db);
  }
  for (const { index } of narrow) {
    await sql`drop index ${sql.ref(index)}`.execute(db);
    await sql`alter index ${sql.ref(`${index}_narrow`)} rename to ${sql.ref(index)}`.execute(db);
  }
}
