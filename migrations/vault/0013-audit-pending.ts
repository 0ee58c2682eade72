// Entries of the audit wait for their checkpoint by number alone. The trigger that notes them is the only one that may, and no entry
// is ever deleted, so the foreign key found nothing; it looked for each entry and locked it, a third of the time of writing it.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`alter table audit_pending drop constraint audit_pending_id_fkey`.execute(db);
}
