// The outbox takes over what a destroyed credential held as it lies there, so that destroying asks for no key. For the receipts,
// which kinds of secret a credential holds is noted when it is sealed. See
// services/vault/destroy.ts and services/vault/revocations.ts.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table credentials
      -- access_token, refresh_token, fields; not known of what was sealed before there was this column, until it is sealed again.
      add column secret_kinds text[] not null default '{}'`.execute(db);
  await sql`
    alter table revocations
      -- Of a credential whose blob and data key lie here as they lay there; null where the grant was sealed for the outbox.
      add column credential_generation int8 check (credential_generation > 0)`.execute(db);
}
