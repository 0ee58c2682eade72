// The rows of the account database as TypeScript sees them; migrations/account makes the tables. They stand in one file
// because Kysely wants the whole schema in the type of a database. Columns are snake_case in Postgres and camelCase here.
import type { Generated, GeneratedAlways, JSONColumnType, Kysely } from "kysely";

/** The account database, or a transaction in it. */
export type AccountDatabase = Kysely<Tables>;

/** Tables by name. */
export interface Tables {
  projects: ProjectRow;
  apiClients: ApiClientRow;
  externalUsers: ExternalUserRow;
  oauthApps: OauthAppRow;
  ownApps: OwnAppRow;
  appOverrides: AppOverrideRow;
  connectTokens: WithDefaults<ConnectTokenRow, "actorMemberId" | "actorRole">;
  connections: ConnectionRow;
  accounts: WithDefaults<AccountRow, "ownerMemberId" | "sharing" | "sharedMemberIds">;
  accountReservations: AccountReservationRow;
  ownOauthClients: OwnOauthClientRow;
  auditEntries: AuditEntryRow;
  events: EventRow;
  webhookEndpoints: WebhookEndpointsTable;
  webhookDeliveries: WebhookDeliveriesTable;
  webhookLanes: WebhookLanesTable;
  credentialWatch: CredentialWatchTable;
}

/** A row of which some columns need not be given. */
type WithDefaults<Row, Column extends keyof Row> = Omit<Row, Column> & { [Name in Column]: Generated<Row[Name]> };

/** The two worlds of a project, as the contract numbers them. */
export type EnvironmentNumber = 1 | 2;

export interface ProjectRow {
  id: string;
  name: string;
  appName: string;
  supportEmail: string;
  requireKeyAuthTest: boolean;
  createTime: Date;
  updateTime: Date;
  deleteTime: Date | null;
}

export interface ApiClientRow {
  projectId: string;
  id: string;
  name: string;
  scopes: readonly string[];
  secretDigest: Buffer;
  previousSecretDigest: Buffer | null;
  previousSecretExpireTime: Date | null;
  createTime: Date;
}

export interface ExternalUserRow {
  projectId: string;
  environment: EnvironmentNumber;
  externalUserId: string;
  id: string;
  createTime: Date;
}

export interface OauthAppRow {
  projectId: string;
  id: string;
  appSlug: string;
  clientId: string;
  name: string;
  description: string;
  scopes: readonly string[];
  additionalScopes: readonly string[];
  createTime: Date;
  updateTime: Date;
}

export interface OwnAppRow {
  projectId: string;
  slug: string;
  /** As the project wrote it, YAML or JSON. */
  definition: string;
  createTime: Date;
  updateTime: Date;
}

export interface AppOverrideRow {
  projectId: string;
  id: string;
  appSlug: string;
  name: string;
  /** Null: it chooses none. */
  oauthAppId: string | null;
  /** Values by name, none of a secret field. */
  fields: JSONColumnType<Readonly<Record<string, string>>>;
  createTime: Date;
  updateTime: Date;
}

export interface ConnectTokenRow {
  projectId: string;
  id: string;
  tokenDigest: Buffer;
  environment: EnvironmentNumber;
  externalUserId: string;
  scopes: readonly string[];
  allowedOrigins: readonly string[];
  successRedirectUri: string;
  errorRedirectUri: string;
  webhookUri: string;
  /** Empty: any app. */
  appSlug: string;
  oauthAppId: string;
  allowProgressiveScopes: boolean;
  requireVerification: boolean;
  createTime: Date;
  expireTime: Date;
  /** The attempt that its one use went to. */
  claimedBy: string | null;
  /** The member for whom its maker acted: its bearer may do what that member may. Empty: no member. */
  actorMemberId: string;
  actorRole: string;
}

export interface ConnectionRow {
  projectId: string;
  id: string;
  environment: EnvironmentNumber;
  externalUserId: string;
  connectTokenId: string;
  appSlug: string;
  oauthAppId: string;
  accountId: string;
  /** Whether the account existed before. */
  reconnects: boolean;
  state: "PENDING" | "AWAITING_VERIFICATION" | "SUCCEEDED" | "FAILED";
  error: string;
  stateDigest: Buffer;
  browserBindingDigest: Buffer;
  /** Of what the browser has to bring to the product, for a connection that is to be verified. */
  verifierDigest: Buffer | null;
  /** What the account is to be made of once it is verified. */
  accountName: string;
  authorizedScopes: readonly string[];
  createTime: Date;
  expireTime: Date;
  /** What the vault told of the credential, for the account's row. */
  credentialGeneration: number | null;
  credentialExpireTime: Date | null;
  lastRefreshTime: Date | null;
  nextRefreshTime: Date | null;
  grantExpireTime: Date | null;
  grantNoticeTime: Date | null;
}

export interface AccountRow {
  projectId: string;
  id: string;
  environment: EnvironmentNumber;
  externalUserId: string;
  appSlug: string;
  oauthAppId: string;
  name: string;
  state: "ACTIVE" | "REVOKING" | "REVOKED";
  /** What the vault has told of its credential: health.ts. */
  health: "HEALTHY" | "UNHEALTHY" | "DEAD";
  error: string;
  authorizedScopes: readonly string[];
  createTime: Date;
  updateTime: Date;
  revokeTime: Date | null;
  /** The member who connected it; empty: the project itself. */
  ownerMemberId: string;
  /** Who beside the owner may use it: member-rights.ts. */
  sharing: "PRIVATE" | "WORKSPACE" | "MEMBERS";
  /** Not empty with MEMBERS, and then alone. */
  sharedMemberIds: readonly string[];
  /** Of the credential that the times and the health are of; null until the vault has told of one. */
  credentialGeneration: number | null;
  expireTime: Date | null;
  lastRefreshTime: Date | null;
  nextRefreshTime: Date | null;
  /** When its user has to connect again, and from when on that is to be told; null once it was. */
  grantExpireTime: Date | null;
  grantNoticeTime: Date | null;
}

/** An id that the vault may hold a credential of, before there is an account. */
export interface AccountReservationRow {
  projectId: string;
  accountId: string;
  environment: EnvironmentNumber;
  externalUserId: string;
  expireTime: Date;
  doomed: boolean;
}

/** The OAuth client of an end user, for one account alone. */
export interface OwnOauthClientRow {
  projectId: string;
  oauthAppId: string;
  accountId: string;
  createTime: Date;
}

/** What is told of a resource. */
type Told = Readonly<Record<string, unknown>>;

export interface AuditEntryRow {
  projectId: string;
  id: string;
  createTime: Date;
  actor: string;
  /** The RPC's name. */
  action: string;
  resourceId: string;
  requestId: string;
  before: JSONColumnType<Told, string | null, string | null> | null;
  after: JSONColumnType<Told, string | null, string | null> | null;
}

export interface EventRow {
  projectId: string;
  id: string;
  environment: EnvironmentNumber;
  type: string;
  externalUserId: string;
  accountId: string;
  createTime: Date;
  data: JSONColumnType<Told>;
  sequence: GeneratedAlways<bigint>;
}

/** Where events are posted. */
export interface WebhookEndpointsTable {
  projectId: string;
  environment: EnvironmentNumber;
  id: string;
  /** A project's own, or one that a connect token named. */
  kind: "WEBHOOK" | "CONNECTION";
  url: string;
  createTime: Date;
  updateTime: Date;
  failingLanes: Generated<readonly string[]>;
  failedProbes: Generated<number>;
  /** Null: the breaker is closed. */
  openUntil: Date | null;
  lastFailureTime: Date | null;
}

/** One posting of one event to one endpoint. */
export interface WebhookDeliveriesTable {
  projectId: string;
  eventId: string;
  endpointId: string;
  environment: EnvironmentNumber;
  lane: string;
  /** Its place in its lane. */
  sequence: Generated<bigint>;
  state: Generated<"PENDING" | "DELIVERED" | "FAILED">;
  attempts: Generated<number>;
  lastError: Generated<string>;
  createTime: Date;
  expireTime: Date;
  completeTime: Date | null;
}

/** The accounts with something to be posted to an endpoint. */
export interface WebhookLanesTable {
  projectId: string;
  environment: EnvironmentNumber;
  endpointId: string;
  lane: string;
  dueTime: Date;
  /** Which attempt is at it, and until when it has it for itself. */
  claimId: string | null;
  claimedUntil: Date | null;
}

/** How far the vault's changes have been taken over: one row. */
export interface CredentialWatchTable {
  id: number;
  pageToken: string;
}
