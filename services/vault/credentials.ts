// The table of credentials: one row for each account, and the statements that change it. A change of the secret is fenced by
// the generation that it was computed from and by the state, never by who holds a lock.
import { type Selectable, sql } from "kysely";
import { notFound } from "#libs/errors.ts";
import type { CredentialsTable, EnvironmentName, VaultDatabase } from "./schema.ts";
import type { SealedColumns, SecretOwner } from "./secrets.ts";

/** A row, with the database's time at which it was read: all comparisons of times are made with that. */
export type CredentialRow = Selectable<CredentialsTable> & { readonly readTime: Date };

/** Names one credential. */
export interface CredentialKey {
  readonly projectId: string;
  readonly accountId: string;
}

/** Whom a caller asks for; what belongs to others counts as absent. */
export interface CredentialFilter extends CredentialKey {
  readonly environment?: EnvironmentName;
  /** Any user when empty. */
  readonly externalUserId?: string;
}

/** The secrets of a credential, as they are sealed. */
export interface CredentialMaterial {
  readonly accessToken?: string;
  readonly refreshToken?: string;
  /** Values of the app's custom fields. */
  readonly fields: Readonly<Record<string, string>>;
}

/** The kinds of secret in it, as receipts name them. */
export function secretKinds({ accessToken, refreshToken, fields }: CredentialMaterial): readonly string[] {
  return [
    ...(accessToken === undefined ? [] : ["access_token"]),
    ...(refreshToken === undefined ? [] : ["refresh_token"]),
    ...(Object.keys(fields).length === 0 ? [] : ["fields"]),
  ];
}

/** What a credential's blob is bound to. */
export function credentialOwner(
  row: Omit<SecretOwner, "purpose" | "id"> & { readonly accountId: string },
): SecretOwner {
  const { projectId, environment, externalUserId, accountId, appSlug } = row;
  return { purpose: "credential", projectId, environment, externalUserId, id: accountId, appSlug };
}

/** The states in which a credential can still be used and refreshed. */
export function isUsable({ state }: Pick<CredentialRow, "state">): boolean {
  return state === "ACTIVE" || state === "UNKNOWN";
}

/** Reads a credential; undefined when there is none that matches. */
export async function findCredential(db: VaultDatabase, filter: CredentialFilter): Promise<CredentialRow | undefined> {
  return ofKey(db, filter)
    .$if(filter.environment !== undefined, (query) =>
      query.where("environment", "=", filter.environment ?? "production"),
    )
    .$if(Boolean(filter.externalUserId), (query) => query.where("externalUserId", "=", filter.externalUserId ?? ""))
    .executeTakeFirst();
}

/** Reads a credential or throws NOT_FOUND. */
export async function getCredential(db: VaultDatabase, filter: CredentialFilter): Promise<CredentialRow> {
  const row = await findCredential(db, filter);
  if (row === undefined) throw notFound("account");
  return row;
}

/** Reads a credential in a transaction and keeps others from changing it until that ends. */
export async function lockCredential(db: VaultDatabase, key: CredentialKey): Promise<CredentialRow | undefined> {
  return ofKey(db, key).forUpdate().executeTakeFirst();
}

/** Which credentials an export asks for. */
export interface StoredFilter {
  readonly projectId?: string;
  readonly environment?: EnvironmentName;
}

/** A page of the credentials that have a secret, in the order of their keys, after one of them. */
export async function listStored(
  db: VaultDatabase,
  { projectId, environment }: StoredFilter,
  after: CredentialKey,
  limit: number,
): Promise<readonly CredentialRow[]> {
  return withReadTime(db)
    .where(sql<boolean>`(project_id, account_id) > (${after.projectId}, ${after.accountId})`)
    .where("blob", "is not", null)
    .$if(projectId !== undefined, (query) => query.where("projectId", "=", projectId ?? ""))
    .$if(environment !== undefined, (query) => query.where("environment", "=", environment ?? "production"))
    .orderBy("projectId")
    .orderBy("accountId")
    .limit(limit)
    .execute();
}

/** How many credentials are in each state, of all projects. */
export async function countCredentials(db: VaultDatabase): Promise<readonly { state: string; count: bigint }[]> {
  return db
    .selectFrom("credentials")
    .select(["state", (eb) => eb.fn.countAll<bigint>().as("count")])
    .groupBy("state")
    .execute();
}

/** How many credentials that are not destroyed carry each reason, of all projects. */
export async function countReasons(db: VaultDatabase): Promise<readonly { reason: string; count: bigint }[]> {
  return db
    .selectFrom("credentials")
    .select(["stateReason as reason", (eb) => eb.fn.countAll<bigint>().as("count")])
    .where("stateReason", "<>", "")
    .where("state", "<>", "REVOKED")
    .groupBy("stateReason")
    .execute();
}

/** What a grant brought, beside its secrets. */
export interface GrantFacts {
  readonly scopes: readonly string[];
  /** Since when the times below count, on the database's clock; now when absent. */
  readonly since?: Date;
  /** The access token's life; absent for keys and tokens without an end. */
  readonly lifetimeSeconds?: number;
  /** After how long it is due for a refresh; absent when it cannot be refreshed. */
  readonly refreshAfterSeconds?: number;
  /** After how long it ends for good, and how long before that its user should be told; absent when it is not known. */
  readonly grantEnd?: { readonly afterSeconds: number; readonly noticeSeconds: number };
  /** Whether another system still refreshes it. */
  readonly shadow?: boolean;
  /** Of the provider's name for its user, where it is known. */
  readonly identityDigest?: Buffer | null;
}

/** The columns of those facts, on the database's clock. */
export function grantColumns({ scopes, since, lifetimeSeconds, refreshAfterSeconds, grantEnd }: GrantFacts) {
  // Rounded: an end that stands is the same to the millisecond, from whichever refresh it is counted.
  const after = (seconds: number | undefined) =>
    seconds !== undefined && since ? new Date(since.getTime() + Math.round(seconds * 1000)) : secondsFromNow(seconds);
  return {
    scopes: [...scopes],
    expireTime: after(lifetimeSeconds),
    nextRefreshTime: after(refreshAfterSeconds),
    grantExpireTime: after(grantEnd?.afterSeconds),
    grantNoticeTime: after(grantEnd && grantEnd.afterSeconds - grantEnd.noticeSeconds),
  };
}

/** What is put; `existing` is the row as locked. */
interface CredentialToPut extends Pick<CredentialRow, "secretKinds" | "ownApp"> {
  readonly sealed: SealedColumns;
  readonly facts: GrantFacts;
  readonly existing: CredentialRow | undefined;
}

/** Puts the new secret of a new or reconnected account in its row. */
export async function putCredential(
  db: VaultDatabase,
  owner: Pick<
    CredentialsTable,
    "projectId" | "environment" | "externalUserId" | "accountId" | "appSlug" | "oauthAppId"
  >,
  { sealed, facts, existing, ...more }: CredentialToPut,
): Promise<void> {
  const columns = {
    ...sealed,
    ...more,
    ...grantColumns(facts),
    grantTime: sql<Date>`now()`,
    oauthAppId: owner.oauthAppId,
    shadow: facts.shadow ?? false,
    identityDigest: facts.identityDigest ?? null,
    state: "ACTIVE" as const,
    stateReason: "",
    generation: (existing?.generation ?? 0n) + 1n,
    failures: 0,
    faults: 0,
    retryTime: null,
    intentId: null,
    intentBy: null,
    intentTime: null,
    updateTime: sql<Date>`now()`,
  };
  if (existing === undefined) {
    await db
      .insertInto("credentials")
      .values({ ...owner, ...columns })
      .execute();
    return;
  }
  await db
    .updateTable("credentials")
    .set(columns)
    .where("projectId", "=", owner.projectId)
    .where("accountId", "=", owner.accountId)
    .execute();
}

/** The database's time. */
export async function readClock(db: VaultDatabase): Promise<Date> {
  const { rows } = await sql<{ time: Date }>`select clock_timestamp() as time`.execute(db);
  const [row] = rows;
  if (row === undefined) throw new Error("the database gave no time");
  return row.time;
}

/** A time on the database's clock. */
export function secondsFromNow(seconds: number | undefined) {
  return seconds === undefined ? null : sql<Date>`now() + make_interval(secs => ${seconds})`;
}

/** Rows with the time at which each is read. */
// clock_timestamp: inside a transaction now() would be the transaction's beginning.
export function withReadTime(db: VaultDatabase) {
  return db.selectFrom("credentials").selectAll().select(sql<Date>`clock_timestamp()`.as("readTime"));
}

function ofKey(db: VaultDatabase, { projectId, accountId }: CredentialKey) {
  return withReadTime(db).where("projectId", "=", projectId).where("accountId", "=", accountId);
}
