// The account database: who connected what. It holds no secret that could be used: client secrets and connect tokens are
// random and kept as SHA-256 digests, credentials are in the vault's database. Every key begins with project_id, so that
// the tables can be distributed by it. Environments are the contract's numbers, states its names. Times have milliseconds,
// as JavaScript has, so that a page token can name a row exactly.
import { type Kysely, sql } from "kysely";

export async function up(db: Kysely<unknown>): Promise<void> {
  for (const statement of statements) await sql.raw(statement).execute(db);
}

const statements = [
  "create domain moment as timestamptz(3)",
  "create domain digest as bytea check (octet_length(value) = 32)",
  "create domain environment as smallint check (value in (1, 2))",

  `create table projects (
    id text primary key,
    name text not null,
    app_name text not null,
    support_email text not null,
    create_time moment not null,
    update_time moment not null
  )`,

  // The secret before the present one works until its end, so that a rotation needs no downtime.
  `create table api_clients (
    project_id text not null references projects (id),
    id text not null,
    name text not null,
    scopes text[] not null,
    secret_digest digest not null,
    previous_secret_digest digest,
    previous_secret_expire_time moment,
    create_time moment not null,
    primary key (project_id, id),
    check ((previous_secret_digest is null) = (previous_secret_expire_time is null))
  )`,
  // A token request names the client alone.
  "create index api_clients_by_id on api_clients (id)",

  `create table external_users (
    project_id text not null references projects (id),
    environment environment not null,
    external_user_id text not null,
    id text not null,
    create_time moment not null,
    primary key (project_id, environment, external_user_id)
  )`,

  `create table oauth_apps (
    project_id text not null references projects (id),
    id text not null,
    app_slug text not null,
    client_id text not null,
    name text not null,
    description text not null,
    scopes text[] not null,
    additional_scopes text[] not null,
    create_time moment not null,
    update_time moment not null,
    primary key (project_id, id)
  )`,
  "create index oauth_apps_by_app on oauth_apps (project_id, app_slug, create_time, id)",

  // claimed_by: the attempt that the token's one use went to, a connection or one call of CreateAccount.
  `create table connect_tokens (
    project_id text not null references projects (id),
    id text not null,
    token_digest digest not null,
    environment environment not null,
    external_user_id text not null,
    scopes text[] not null,
    allowed_origins text[] not null,
    success_redirect_uri text not null,
    error_redirect_uri text not null,
    app_slug text not null,
    oauth_app_id text not null,
    allow_progressive_scopes boolean not null,
    create_time moment not null,
    expire_time moment not null,
    claimed_by text,
    primary key (project_id, id)
  )`,
  "create index connect_tokens_by_digest on connect_tokens (token_digest)",

  // account_id is reserved at the start; the account itself is made at the end, unless the connection replaces the
  // credential of one that exists.
  `create table connections (
    project_id text not null,
    id text not null,
    environment environment not null,
    external_user_id text not null,
    connect_token_id text not null,
    app_slug text not null,
    oauth_app_id text not null,
    account_id text not null,
    reconnects boolean not null,
    state text not null check (state in ('PENDING', 'SUCCEEDED', 'FAILED')),
    error text not null,
    state_digest digest not null,
    browser_binding_digest digest not null,
    create_time moment not null,
    expire_time moment not null,
    primary key (project_id, id),
    foreign key (project_id, connect_token_id) references connect_tokens (project_id, id),
    check ((state = 'FAILED') = (error <> ''))
  )`,
  // A redirect names the state alone.
  "create index connections_by_state on connections (state_digest)",

  `create table accounts (
    project_id text not null references projects (id),
    id text not null,
    environment environment not null,
    external_user_id text not null,
    app_slug text not null,
    oauth_app_id text not null,
    name text not null,
    state text not null check (state in ('ACTIVE', 'REVOKING', 'REVOKED')),
    health text not null check (health in ('HEALTHY', 'UNHEALTHY', 'DEAD')),
    error text not null,
    authorized_scopes text[] not null,
    create_time moment not null,
    update_time moment not null,
    revoke_time moment,
    primary key (project_id, id),
    check ((state = 'ACTIVE') = (revoke_time is null))
  )`,
  // Lists and revocations walk these in order; tombstones stay out of them.
  `create index accounts_in_order on accounts (project_id, environment, create_time, id) where state <> 'REVOKED'`,
  `create index accounts_by_user on accounts (project_id, environment, external_user_id, create_time, id)
    where state <> 'REVOKED'`,
  `create index accounts_by_app on accounts (project_id, environment, app_slug, create_time, id)
    where state <> 'REVOKED'`,
  `create index accounts_by_oauth_app on accounts (project_id, oauth_app_id, environment, create_time, id)
    where state <> 'REVOKED'`,

  // The service deletes nothing yet; what it registers once it never rewrites.
  "revoke delete on all tables in schema public from deputy_account",
  "revoke update on projects, external_users, oauth_apps, api_clients from deputy_account",
];
