// What connecting needs beyond its first form: outcomes that are told to an address, connections that wait for the product's
// word, and reservations, so that no credential stays in the vault whose account was never made.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of statements) await sql.raw(statement).execute(db);
}

const statements = [
  `alter table connect_tokens
    add column webhook_uri text not null default '',
    add column require_verification boolean not null default false`,
  "create index connect_tokens_by_user on connect_tokens (project_id, environment, external_user_id, expire_time)",

  // What is to become of the account waits here with the connection until it is verified.
  `alter table connections
    add column verifier_digest digest,
    add column account_name text not null default '',
    add column authorized_scopes text[] not null default '{}',
    add column credential_generation int,
    add column credential_expire_time moment,
    add column last_refresh_time moment,
    add column next_refresh_time moment,
    add column grant_expire_time moment,
    add column grant_notice_time moment,
    drop constraint connections_state_check,
    add constraint connections_state_check
      check (state in ('PENDING', 'AWAITING_VERIFICATION', 'SUCCEEDED', 'FAILED')),
    add constraint connections_verifier_check check (state <> 'AWAITING_VERIFICATION' or verifier_digest is not null)`,
  // Of what is open there is little: the sweep and the end of a user find it here.
  `create index connections_open on connections (expire_time)
    where state in ('PENDING', 'AWAITING_VERIFICATION')`,
  `create index connections_open_by_user on connections (project_id, environment, external_user_id)
    where state in ('PENDING', 'AWAITING_VERIFICATION')`,

  // An id under which the vault may get a credential before there is an account. doomed: the credential is being destroyed,
  // and the account can be made no more.
  `create table account_reservations (
    project_id text not null,
    account_id text not null,
    environment environment not null,
    external_user_id text not null,
    expire_time moment not null,
    doomed boolean not null default false,
    primary key (project_id, account_id)
  )`,
  "create index account_reservations_in_order on account_reservations (expire_time)",
  "create index account_reservations_by_user on account_reservations (project_id, environment, external_user_id)",

  // The OAuth client that an end user brought for one account, whose secret is in the vault: destroyed once no account has it.
  `create table own_oauth_clients (
    project_id text not null,
    oauth_app_id text not null,
    account_id text not null,
    create_time moment not null,
    primary key (project_id, oauth_app_id)
  )`,
  "create index own_oauth_clients_in_order on own_oauth_clients (create_time)",
];
