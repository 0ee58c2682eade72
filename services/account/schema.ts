// The rows of the account database as TypeScript sees them; migrations/account makes the tables. They stand in one file
// because Kysely wants the whole schema in the type of a database. Names of columns are the contract's.
import type { Kysely } from "kysely";

/** The account database, or a transaction in it. */
export type AccountDatabase = Kysely<Tables>;

/** Tables by name. */
export interface Tables {
  projects: ProjectRow;
  api_clients: ApiClientRow;
  external_users: ExternalUserRow;
  oauth_apps: OauthAppRow;
  connect_tokens: ConnectTokenRow;
  connections: ConnectionRow;
  accounts: AccountRow;
}

/** The two worlds of a project, as the contract numbers them. */
export type EnvironmentNumber = 1 | 2;

export interface ProjectRow {
  id: string;
  name: string;
  app_name: string;
  support_email: string;
  create_time: Date;
  update_time: Date;
}

export interface ApiClientRow {
  project_id: string;
  id: string;
  name: string;
  scopes: readonly string[];
  secret_digest: Buffer;
  previous_secret_digest: Buffer | null;
  previous_secret_expire_time: Date | null;
  create_time: Date;
}

export interface ExternalUserRow {
  project_id: string;
  environment: EnvironmentNumber;
  external_user_id: string;
  id: string;
  create_time: Date;
}

export interface OauthAppRow {
  project_id: string;
  id: string;
  app_slug: string;
  client_id: string;
  name: string;
  description: string;
  scopes: readonly string[];
  additional_scopes: readonly string[];
  create_time: Date;
  update_time: Date;
}

export interface ConnectTokenRow {
  project_id: string;
  id: string;
  token_digest: Buffer;
  environment: EnvironmentNumber;
  external_user_id: string;
  scopes: readonly string[];
  allowed_origins: readonly string[];
  success_redirect_uri: string;
  error_redirect_uri: string;
  /** Empty: any app. */
  app_slug: string;
  oauth_app_id: string;
  allow_progressive_scopes: boolean;
  create_time: Date;
  expire_time: Date;
  /** The attempt that its one use went to. */
  claimed_by: string | null;
}

export interface ConnectionRow {
  project_id: string;
  id: string;
  environment: EnvironmentNumber;
  external_user_id: string;
  connect_token_id: string;
  app_slug: string;
  oauth_app_id: string;
  account_id: string;
  /** Whether the account existed before. */
  reconnects: boolean;
  state: "PENDING" | "SUCCEEDED" | "FAILED";
  error: string;
  state_digest: Buffer;
  browser_binding_digest: Buffer;
  create_time: Date;
  expire_time: Date;
}

export interface AccountRow {
  project_id: string;
  id: string;
  environment: EnvironmentNumber;
  external_user_id: string;
  app_slug: string;
  oauth_app_id: string;
  name: string;
  state: "ACTIVE" | "REVOKING" | "REVOKED";
  /** What this service knows of it: the vault alone sees refreshes fail, and does not report them here yet. */
  health: "HEALTHY" | "UNHEALTHY" | "DEAD";
  error: string;
  authorized_scopes: readonly string[];
  create_time: Date;
  update_time: Date;
  revoke_time: Date | null;
}
