// The vault's tables. A secret lies only in `blob`, sealed by services/vault/envelope.ts; the columns beside it are what
// opens it. Every key begins with project_id, so that the tables can be distributed by it.
import { type Kysely, sql } from "kysely";

const sealed = sql`blob bytea, data_key_id text, wrapped_data_key bytea, kek_id text`;
// All four or none: a blob without its key, or a key that outlives its blob, is a fault.
const sealedTogether = sql`num_nulls(blob, data_key_id, wrapped_data_key, kek_id) in (0, 4)`;
const environment = sql`environment text not null check (environment in ('development', 'production'))`;

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table credentials (
      project_id text not null,
      account_id text not null,
      ${environment},
      external_user_id text not null,
      app_slug text not null,
      -- Empty for keys.
      oauth_app_id text not null,
      state text not null check (state in ('ACTIVE', 'UNKNOWN', 'NEEDS_REAUTH', 'REVOKED')),
      state_reason text not null default '',
      scopes text[] not null default '{}',
      generation int8 not null check (generation > 0),
      ${sealed},
      expire_time timestamptz,
      last_refresh_time timestamptz,
      next_refresh_time timestamptz,
      -- A refresh under way: which, by which process, since when. See services/vault/refresh.ts.
      intent_id text,
      intent_by text,
      intent_time timestamptz,
      -- The last refresh that was stored, by which a repeated write knows itself again.
      last_intent_id text,
      failures int not null default 0,
      retry_time timestamptz,
      create_time timestamptz not null default now(),
      update_time timestamptz not null default now(),
      revoke_time timestamptz,
      primary key (project_id, account_id),
      check (${sealedTogether}),
      -- Destroyed means that nothing is left to open, and nothing else does.
      check ((state = 'REVOKED') = (blob is null)),
      check ((state = 'REVOKED') = (revoke_time is not null)),
      check (state <> 'REVOKED' or next_refresh_time is null),
      check (num_nulls(intent_id, intent_by, intent_time) in (0, 3))
    )`.execute(db);
  await sql`create index credentials_due on credentials (next_refresh_time)
    where state = 'ACTIVE' and next_refresh_time is not null`.execute(db);
  await sql`
    create table oauth_clients (
      project_id text not null,
      oauth_app_id text not null,
      app_slug text not null,
      client_id text not null,
      generation int8 not null check (generation > 0),
      ${sealed},
      create_time timestamptz not null default now(),
      update_time timestamptz not null default now(),
      destroy_time timestamptz,
      primary key (project_id, oauth_app_id),
      check (${sealedTogether}),
      check ((destroy_time is null) = (blob is not null))
    )`.execute(db);
  await sql`
    create table authorizations (
      project_id text not null,
      -- SHA-256 of the OAuth state, which itself is kept nowhere.
      state_digest bytea not null check (length(state_digest) = 32),
      ${environment},
      external_user_id text not null,
      account_id text not null,
      app_slug text not null,
      oauth_app_id text not null,
      state text not null check (state in ('PENDING', 'EXCHANGING', 'SUCCEEDED', 'FAILED')),
      failure_reason text not null default '',
      redirect_uri text not null,
      scopes text[] not null,
      ${sealed},
      identity_name text not null default '',
      create_time timestamptz not null default now(),
      expire_time timestamptz not null,
      claim_time timestamptz,
      primary key (project_id, state_digest),
      check (${sealedTogether}),
      -- The PKCE verifier goes when the authorization has ended.
      check ((state in ('PENDING', 'EXCHANGING')) = (blob is not null)),
      check ((state = 'FAILED') = (failure_reason <> ''))
    )`.execute(db);
  // The provider's redirect names no project.
  await sql`create index authorizations_by_state_digest on authorizations (state_digest)`.execute(db);
  await sql`create index authorizations_by_expire_time on authorizations (expire_time)`.execute(db);
  await sql`create index authorizations_by_account on authorizations (project_id, account_id)`.execute(db);
  await sql`
    create table revocations (
      project_id text not null,
      id text not null,
      ${environment},
      external_user_id text not null,
      account_id text not null,
      app_slug text not null,
      state text not null check (state in ('PENDING', 'DONE', 'FAILED')),
      ${sealed},
      last_error text not null default '',
      create_time timestamptz not null default now(),
      expire_time timestamptz not null,
      complete_time timestamptz,
      primary key (project_id, id),
      check (${sealedTogether}),
      -- The token to revoke is wiped with the outcome.
      check ((state = 'PENDING') = (blob is not null)),
      check ((state = 'PENDING') = (complete_time is null))
    )`.execute(db);
  await sql`create index revocations_by_account on revocations (project_id, account_id)`.execute(db);
  // The service destroys by wiping columns: a row that is gone could not say what became of it. Authorizations that ended long
  // ago are swept.
  await sql`revoke delete on credentials, oauth_clients, revocations from deputy_vault`.execute(db);
}
