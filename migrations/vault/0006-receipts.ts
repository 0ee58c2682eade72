// What receipts and shared grants need. Receipts: which kinds of secret a credential held. Shared grants: who the user is at
// the provider, and revocations that wait for other accounts of the same user. See services/vault/shared-grants.ts.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table credentials
      -- Written when it is destroyed: access_token, refresh_token, fields; nothing for a secret that could not be read.
      add column destroyed_kinds text[] not null default '{}',
      -- SHA-256 of the provider's name for its user, where the app asks for one.
      add column identity_digest bytea check (length(identity_digest) = 32)`.execute(db);
  await sql`create index credentials_by_user on credentials (project_id, oauth_app_id, external_user_id)
    where state <> 'REVOKED' and oauth_app_id <> ''`.execute(db);
  await sql`create index credentials_by_identity on credentials (project_id, oauth_app_id, identity_digest)
    where state <> 'REVOKED' and identity_digest is not null`.execute(db);
  await sql`
    alter table revocations
      add column oauth_app_id text not null default '',
      add column identity_digest bytea,
      -- Asked for: the provider is told even where that ends the grants of other accounts.
      add column revoke_shared_grant boolean not null default false,
      -- When the call began that the provider confirmed.
      add column told_time timestamptz,
      drop constraint revocations_state_check,
      add constraint revocations_state_check check (state in ('PENDING', 'DEFERRED', 'DONE', 'FAILED')),
      drop constraint revocations_check2,
      add constraint revocations_complete check ((state in ('PENDING', 'DEFERRED')) = (complete_time is null))`.execute(
    db,
  );
  await sql`create index revocations_deferred on revocations (project_id, oauth_app_id)
    where state = 'DEFERRED'`.execute(db);
  await sql`create index revocations_by_user on revocations (project_id, oauth_app_id, external_user_id)
    where state = 'PENDING'`.execute(db);
  await sql`create index revocations_by_identity on revocations (project_id, oauth_app_id, identity_digest)
    where identity_digest is not null`.execute(db);
}
