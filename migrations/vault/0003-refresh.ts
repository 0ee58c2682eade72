// What the refresh loop needs: due rows by app, so that one provider's rows are never in the way of another's; the faults of
// a row; and, on the OAuth client, whether its provider refuses it and which of its secrets works.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table credentials
      -- In a row, of our own making: what cannot be opened. Not the provider's failures.
      add column faults int not null default 0`.execute(db);
  await sql`drop index credentials_due`.execute(db);
  await sql`create index credentials_due on credentials (app_slug, next_refresh_time)
    where state in ('ACTIVE', 'UNKNOWN') and next_refresh_time is not null`.execute(db);
  // The guard against marking many accounts dead counts those of the last minutes, and those that it keeps.
  await sql`create index credentials_dead on credentials (project_id, app_slug, update_time)
    where state = 'NEEDS_REAUTH'`.execute(db);
  await sql`create index credentials_held on credentials (project_id, app_slug)
    where state_reason = 'BLAST_RADIUS_GUARD'`.execute(db);
  await sql`create index credentials_of_refused_client on credentials (project_id, oauth_app_id)
    where state_reason = 'OAUTH_CLIENT_REJECTED'`.execute(db);
  await sql`
    alter table oauth_clients
      -- The breaker: how often the provider refused the client in a row, and when one refresh may try it again.
      add column rejections int not null default 0,
      add column probe_time timestamptz,
      add constraint oauth_clients_breaker check ((rejections > 0) = (probe_time is not null)),
      -- The secret that the provider took last, counted from 0 in the order in which they are stored.
      add column working_secret int not null default 0`.execute(db);
}
