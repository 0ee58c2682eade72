// When a provider first took an OAuth client by the secret that works: before it, nobody knows whether the others are needed.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`alter table oauth_clients add column working_secret_time timestamptz`.execute(db);
}
