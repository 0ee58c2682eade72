// The rows of the vault's database as TypeScript sees them; migrations/vault makes the tables. They stand in one file because
// Kysely wants the whole schema in the type of a database. Columns are snake_case in Postgres and camelCase here.
import type { Generated, GeneratedAlways, Kysely } from "kysely";
import { openDatabase, type PoolOptions } from "#libs/database.ts";

/** All tables of the vault. */
export interface VaultTables {
  readonly credentials: CredentialsTable;
  readonly oauthClients: OauthClientsTable;
  readonly ownApps: OwnAppsTable;
  readonly authorizations: AuthorizationsTable;
  readonly revocations: RevocationsTable;
  readonly keyRotation: KeyRotationTable;
  readonly vaultProcesses: VaultProcessesTable;
  readonly leaseWatchers: LeaseWatchersTable;
  readonly leaseInvalidations: LeaseInvalidationsTable;
  readonly auditEntries: AuditEntriesTable;
  readonly auditCheckpoints: AuditCheckpointsTable;
  readonly auditPending: AuditPendingTable;
  readonly webhookKeys: WebhookKeysTable;
}

/** The database, or a transaction in it. */
export type VaultDatabase = Kysely<VaultTables>;

/** Opens the database. End it by `destroy()`. */
export function openVaultDatabase(options: PoolOptions): VaultDatabase {
  return openDatabase<VaultTables>(options);
}

/** The two worlds of a project. */
export type EnvironmentName = "development" | "production";

/** Where a credential is in its life, as the contract names it. */
export type CredentialState = "ACTIVE" | "UNKNOWN" | "NEEDS_REAUTH" | "REVOKED";

/** One row for each account. */
export interface CredentialsTable {
  readonly projectId: string;
  readonly accountId: string;
  readonly environment: EnvironmentName;
  readonly externalUserId: string;
  readonly appSlug: string;
  readonly oauthAppId: string;
  readonly state: CredentialState;
  readonly stateReason: string;
  readonly scopes: readonly string[];
  readonly generation: bigint;
  readonly blob: Buffer | null;
  readonly dataKeyId: string | null;
  readonly wrappedDataKey: Buffer | null;
  readonly kekId: string | null;
  readonly expireTime: Date | null;
  readonly lastRefreshTime: Date | null;
  readonly nextRefreshTime: Date | null;
  readonly intentId: string | null;
  readonly intentBy: string | null;
  readonly intentTime: Date | null;
  readonly lastIntentId: string | null;
  readonly failures: Generated<number>;
  readonly retryTime: Date | null;
  readonly faults: Generated<number>;
  readonly createTime: Generated<Date>;
  readonly updateTime: Generated<Date>;
  readonly revokeTime: Date | null;
  /** Imported and still refreshed by another system: leased while it is valid, never refreshed here. */
  readonly shadow: Generated<boolean>;
  /** What is sealed, by its kind; none where that is not known. */
  readonly secretKinds: Generated<readonly string[]>;
  /** What was destroyed, by its kind. */
  readonly destroyedKinds: Generated<readonly string[]>;
  /** Of the provider's name for its user; null where it is not known. */
  readonly identityDigest: Buffer | null;
  /** The transaction that changed the row last, as a number in a text: credential-changes.ts. */
  readonly changeId: Generated<string>;
  /** Whether its app is the project's own. */
  readonly ownApp: Generated<boolean>;
  /** When the user gave the grant, or it was stored. */
  readonly grantTime: Generated<Date>;
  /** When it ends for good, and from when on its user should be asked to connect again; both null when that is not known. */
  readonly grantExpireTime: Date | null;
  readonly grantNoticeTime: Date | null;
}

/** A project's own apps, those that have ended too. */
export interface OwnAppsTable {
  readonly projectId: string;
  readonly slug: string;
  readonly definition: string;
  readonly isOauth: boolean;
  readonly revokeEffect: string;
  readonly createTime: Generated<Date>;
  readonly updateTime: Generated<Date>;
  readonly destroyTime: Date | null;
}

/** A project's own OAuth clients. */
export interface OauthClientsTable {
  readonly projectId: string;
  readonly oauthAppId: string;
  readonly appSlug: string;
  readonly clientId: string;
  readonly generation: bigint;
  readonly blob: Buffer | null;
  readonly dataKeyId: string | null;
  readonly wrappedDataKey: Buffer | null;
  readonly kekId: string | null;
  readonly createTime: Generated<Date>;
  readonly updateTime: Generated<Date>;
  readonly destroyTime: Date | null;
  readonly rejections: Generated<number>;
  readonly probeTime: Date | null;
  readonly workingSecret: Generated<number>;
  /** When the provider first took it; null until then. */
  readonly workingSecretTime: Date | null;
}

/** One row for each time that a browser is sent to a provider. */
export interface AuthorizationsTable {
  readonly projectId: string;
  readonly stateDigest: Buffer;
  readonly environment: EnvironmentName;
  readonly externalUserId: string;
  readonly accountId: string;
  readonly appSlug: string;
  readonly oauthAppId: string;
  readonly state: "PENDING" | "EXCHANGING" | "SUCCEEDED" | "FAILED";
  readonly failureReason: Generated<string>;
  readonly redirectUri: string;
  readonly scopes: readonly string[];
  readonly blob: Buffer | null;
  readonly dataKeyId: string | null;
  readonly wrappedDataKey: Buffer | null;
  readonly kekId: string | null;
  readonly identityName: Generated<string>;
  readonly createTime: Generated<Date>;
  readonly expireTime: Date;
  readonly claimTime: Date | null;
}

/** The outbox of revocations. */
export interface RevocationsTable {
  readonly projectId: string;
  readonly id: string;
  readonly environment: EnvironmentName;
  readonly externalUserId: string;
  readonly accountId: string;
  readonly appSlug: string;
  readonly oauthAppId: Generated<string>;
  readonly identityDigest: Buffer | null;
  /** The provider is told even where that ends other accounts' grants: shared-grants.ts. */
  readonly revokeSharedGrant: Generated<boolean>;
  /** Of the credential whose blob and data key these are; null where the grant was sealed for the outbox. */
  readonly credentialGeneration: bigint | null;
  readonly state: "PENDING" | "DEFERRED" | "DONE" | "FAILED";
  readonly blob: Buffer | null;
  readonly dataKeyId: string | null;
  readonly wrappedDataKey: Buffer | null;
  readonly kekId: string | null;
  readonly lastError: Generated<string>;
  readonly createTime: Generated<Date>;
  readonly expireTime: Date;
  readonly completeTime: Date | null;
  /** When the call began that the provider confirmed. */
  readonly toldTime: Date | null;
}

/** One row at most: the key-encryption key that everything is to be wrapped under. */
export interface KeyRotationTable {
  readonly id: Generated<number>;
  readonly kekId: string;
  readonly requestTime: Generated<Date>;
}

/** One row for each running vault process. */
export interface VaultProcessesTable {
  readonly processId: string;
  readonly kekIds: readonly string[];
  readonly reportTime: Generated<Date>;
}

/** One row for each proxy process that watches leases. */
export interface LeaseWatchersTable {
  readonly proxyId: string;
  readonly watchId: string;
  readonly acknowledgedSequence: bigint;
  readonly lastSeenTime: Date;
}

/** Accounts whose leases were ended, in the order of the commits. */
export interface LeaseInvalidationsTable {
  readonly sequence: Generated<bigint>;
  readonly projectId: string;
  readonly accountId: string;
  readonly reason: "REVOKED" | "RECONNECTED" | "CHANGED";
  readonly createTime: Generated<Date>;
}

/** What was done to credentials, by whom. Rows are added and read, never changed. */
export interface AuditEntriesTable {
  readonly id: GeneratedAlways<bigint>;
  readonly time: Generated<Date>;
  readonly delayMs: Generated<number>;
  readonly action: string;
  readonly service: string;
  readonly subject: Generated<string>;
  readonly projectId: Generated<string>;
  readonly environment: Generated<string>;
  readonly externalUserId: Generated<string>;
  readonly accountId: Generated<string>;
  readonly purpose: Generated<string>;
  readonly requestId: Generated<string>;
  readonly reason: Generated<string>;
}

/** The signed chain over the entries. */
export interface AuditCheckpointsTable {
  readonly number: bigint;
  readonly time: Date;
  readonly entryIds: readonly bigint[];
  readonly entryHashes: readonly Buffer[];
  readonly prevHash: Buffer;
  readonly hash: Buffer;
  readonly keyId: string;
  readonly signature: Buffer;
}

/** Entries that no checkpoint has yet; a trigger puts them here. */
export interface AuditPendingTable {
  readonly id: bigint;
}

/** What webhooks are signed with: one row for each webhook. */
export interface WebhookKeysTable {
  readonly projectId: string;
  readonly webhookId: string;
  readonly environment: EnvironmentName;
  readonly generation: bigint;
  readonly blob: Buffer | null;
  readonly dataKeyId: string | null;
  readonly wrappedDataKey: Buffer | null;
  readonly kekId: string | null;
  readonly createTime: Generated<Date>;
  readonly updateTime: Generated<Date>;
  readonly destroyTime: Date | null;
}
