// The table of authorizations: one row for each time that a browser is sent to a provider. It is found by the digest of the
// OAuth state, claimed once, and keeps its outcome, so that a second click or a caller that crashed gets the first answer.
//
//   PENDING -> EXCHANGING -> SUCCEEDED | FAILED(reason)        a claim whose process died never ends: it fails after a minute
import { type Selectable, sql } from "kysely";
import { notFound } from "#libs/errors.ts";
import type { DestroyFilter } from "./destroyed-credentials.ts";
import type { AuthorizationsTable, VaultDatabase } from "./schema.ts";
import { type SealedColumns, type SecretOwner, wiped } from "./secrets.ts";

/** For how long an authorization can be completed: people read consent pages, and look for passwords. */
export const authorizationMinutes = 10;

// An exchange has 20 s and the identity request 5 s.
const claimSeconds = 60;

// For how long an outcome is kept for who comes twice.
const keptDays = 1;

/** A row of the table. */
export type AuthorizationRow = Selectable<AuthorizationsTable>;

/** What is sealed in a row. */
export interface AuthorizationSecrets {
  readonly codeVerifier: string;
  /** Values of custom fields, for templated endpoints and then for the credential. */
  readonly fields: Readonly<Record<string, string>>;
  /** Whether a grant of a part of the scopes is refused; not there in rows from before. */
  readonly allScopesRequired?: boolean;
}

type Subject = Pick<
  AuthorizationsTable,
  "projectId" | "environment" | "externalUserId" | "accountId" | "appSlug" | "oauthAppId" | "redirectUri" | "scopes"
>;

/** What a row's blob is bound to: the digest is the record's own id. */
export function authorizationOwner(row: Subject & Pick<AuthorizationsTable, "stateDigest">): SecretOwner {
  const { projectId, environment, externalUserId, appSlug, stateDigest } = row;
  return { purpose: "authorization", projectId, environment, externalUserId, id: stateDigest.toString("hex"), appSlug };
}

/** Stores an authorization that begins. Gives its end. */
export async function insertAuthorization(
  db: VaultDatabase,
  subject: Subject & Pick<AuthorizationsTable, "stateDigest">,
  sealed: SealedColumns,
): Promise<Date> {
  const { expireTime } = await db
    .insertInto("authorizations")
    .values({
      ...subject,
      ...sealed,
      state: "PENDING",
      expireTime: sql<Date>`now() + make_interval(mins => ${authorizationMinutes})`,
    })
    .returning("expireTime")
    .executeTakeFirstOrThrow();
  return expireTime;
}

/** Reads the authorization of a state, or throws NOT_FOUND. */
export async function getAuthorization(db: VaultDatabase, stateDigest: Buffer): Promise<AuthorizationRow> {
  const row = await db
    .selectFrom("authorizations")
    .selectAll()
    .where("stateDigest", "=", stateDigest)
    .executeTakeFirst();
  if (row === undefined) throw notFound("authorization");
  return row;
}

/** Takes the right to exchange the code; false when another has it, or it has ended. */
export async function claimAuthorization(db: VaultDatabase, row: AuthorizationRow): Promise<boolean> {
  const { numUpdatedRows } = await ofRow(db, row)
    .set({ state: "EXCHANGING", claimTime: sql<Date>`now()` })
    .where("state", "=", "PENDING")
    .where("expireTime", ">", sql<Date>`now()`)
    .executeTakeFirst();
  return numUpdatedRows === 1n;
}

/** Gives the right back: the provider has not seen the code. */
export async function releaseAuthorization(db: VaultDatabase, row: AuthorizationRow): Promise<void> {
  await ofRow(db, row).set({ state: "PENDING", claimTime: null }).where("state", "=", "EXCHANGING").execute();
}

/** The state that a claimed authorization has now, kept so until the transaction ends. */
export async function lockAuthorization(
  db: VaultDatabase,
  { projectId, stateDigest }: AuthorizationRow,
): Promise<Pick<AuthorizationRow, "state" | "externalUserId"> | undefined> {
  return db
    .selectFrom("authorizations")
    .select(["state", "externalUserId"])
    .where("projectId", "=", projectId)
    .where("stateDigest", "=", stateDigest)
    .forUpdate()
    .executeTakeFirst();
}

/** Ends the authorization in success. */
export async function succeedAuthorization(
  db: VaultDatabase,
  row: AuthorizationRow,
  identityName: string,
): Promise<void> {
  await ofRow(db, row)
    .set({ ...wiped, state: "SUCCEEDED", identityName })
    .where("state", "=", "EXCHANGING")
    .execute();
}

/** Ends the authorization that this process has claimed. */
export async function failAuthorization(db: VaultDatabase, row: AuthorizationRow, reason: string): Promise<void> {
  await ofRow(db, row).set(failed(reason)).where("state", "=", "EXCHANGING").execute();
}

/** Ends what nobody can complete any more: past its time, or claimed by a process that is gone. */
export async function failStaleAuthorization(db: VaultDatabase, row: AuthorizationRow): Promise<void> {
  await ofRow(db, row)
    .set(failed("AUTHORIZATION_EXPIRED"))
    .where("state", "=", "PENDING")
    .where("expireTime", "<=", sql<Date>`now()`)
    .execute();
  await ofRow(db, row)
    .set(failed("AUTHORIZATION_INTERRUPTED"))
    .where("state", "=", "EXCHANGING")
    .where("claimTime", "<", sql<Date>`now() - make_interval(secs => ${claimSeconds})`)
    .execute();
}

/** Ends the authorizations of accounts that are being destroyed, those under way included. */
export async function failAuthorizationsOf(
  db: VaultDatabase,
  { projectId, environment, accountIds }: DestroyFilter,
): Promise<void> {
  await db
    .updateTable("authorizations")
    .set(failed("ACCOUNT_REVOKED"))
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .where("accountId", "=", sql<string>`any(${accountIds})`)
    .where("state", "in", ["PENDING", "EXCHANGING"])
    .execute();
}

/** Ends all authorizations of a user who is erased, and lets them tell of a pseudonym. Gives how many there were. */
export async function failAuthorizationsOfUser(
  db: VaultDatabase,
  user: Pick<AuthorizationsTable, "projectId" | "environment" | "externalUserId">,
  pseudonym: string,
): Promise<number> {
  const isOver = sql<boolean>`state in ('SUCCEEDED', 'FAILED')`;
  const { numUpdatedRows } = await db
    .updateTable("authorizations")
    .set({
      ...wiped,
      externalUserId: pseudonym,
      identityName: "",
      state: sql`case when ${isOver} then state else 'FAILED' end`,
      failureReason: sql`case when ${isOver} then failure_reason else 'ACCOUNT_REVOKED' end`,
    })
    .where("projectId", "=", user.projectId)
    .where("environment", "=", user.environment)
    .where("externalUserId", "=", user.externalUserId)
    .executeTakeFirst();
  return Number(numUpdatedRows);
}

/** Wipes the verifiers of what nobody came back for, and drops what ended so long ago that no repeat will ask. */
export async function sweepAuthorizations(db: VaultDatabase): Promise<void> {
  await db
    .updateTable("authorizations")
    .set(failed("AUTHORIZATION_EXPIRED"))
    .where("state", "=", "PENDING")
    .where("expireTime", "<=", sql<Date>`now()`)
    .execute();
  await db
    .updateTable("authorizations")
    .set(failed("AUTHORIZATION_INTERRUPTED"))
    .where("state", "=", "EXCHANGING")
    .where("claimTime", "<", sql<Date>`now() - make_interval(secs => ${claimSeconds})`)
    .execute();
  await db
    .deleteFrom("authorizations")
    .where("state", "in", ["SUCCEEDED", "FAILED"])
    .where("expireTime", "<", sql<Date>`now() - make_interval(days => ${keptDays})`)
    .execute();
}

function failed(failureReason: string) {
  return { ...wiped, state: "FAILED" as const, failureReason };
}

function ofRow(db: VaultDatabase, { projectId, stateDigest }: AuthorizationRow) {
  return db.updateTable("authorizations").where("projectId", "=", projectId).where("stateDigest", "=", stateDigest);
}
