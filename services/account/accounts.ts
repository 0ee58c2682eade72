// The table of accounts, the usable ones and the tombstones. Every lookup is keyed by project, environment and, where one
// is given, user: an account of somebody else is not found rather than refused.
//
// An account is ACTIVE, then REVOKING (refused from here on, its credential perhaps still there), then REVOKED (the vault
// has confirmed). It never goes back, and REVOKING is no dead end: whoever revokes again takes it up.
import { type RawBuilder, sql } from "kysely";
import { notFound, StatusError } from "#libs/errors.ts";
import { type Actor, allowedRows, type Right, requireRight, type Shared } from "./member-rights.ts";
import { isAfter, type Page, type PageOf, pageOf } from "./pages.ts";
import { holdProject } from "./projects.ts";
import type { AccountDatabase, AccountRow, Told } from "./schema.ts";

/** Whose accounts: an empty user means any. */
export interface AccountScope {
  readonly projectId: string;
  readonly environment: number;
  readonly externalUserId: string;
}

/** Which of them; what is empty or not given lets all through. */
export interface AccountFilter extends AccountScope {
  readonly accountId?: string;
  readonly appSlug?: string;
  readonly oauthAppId?: string;
  readonly health?: AccountRow["health"];
  /** The member who asks: lists give what that member may see, revocations take what that member may delete. */
  readonly actor?: Actor;
}

/** What the vault tells of a credential that it has stored. */
export type CredentialFacts = Pick<
  AccountRow,
  "credentialGeneration" | "expireTime" | "lastRefreshTime" | "nextRefreshTime" | "grantExpireTime" | "grantNoticeTime"
>;

/** What a new account is made of; without an owner it belongs to the project. */
export type NewAccount = Omit<
  AccountRow,
  "state" | "health" | "error" | "createTime" | "updateTime" | "revokeTime" | keyof Shared | keyof CredentialFacts
> &
  Partial<CredentialFacts & Pick<AccountRow, "ownerMemberId">>;

/** Call it in a transaction: it holds the account's project. */
export async function insertAccount(db: AccountDatabase, account: NewAccount, time: Date): Promise<AccountRow> {
  const times = { createTime: time, updateTime: time };
  const fresh = { state: "ACTIVE", health: "HEALTHY", error: "", sharing: defaultSharing(account), ...times } as const;
  await holdProject(db, account.projectId);
  return db
    .insertInto("accounts")
    .values({ ...account, ...fresh })
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Who may use an account of which nobody has said so. */
export function defaultSharing({ ownerMemberId = "" }: { readonly ownerMemberId?: string }): AccountRow["sharing"] {
  return ownerMemberId === "" ? "WORKSPACE" : "PRIVATE";
}

/** The account in whatever state, for whoever may do that with it. */
export async function getAnyAccount(
  db: AccountDatabase,
  scope: AccountScope,
  id: string,
  right: Right,
): Promise<AccountRow> {
  const row = await db
    .selectFrom("accounts")
    .selectAll()
    .where("projectId", "=", scope.projectId)
    .where("id", "=", id)
    .executeTakeFirst();
  if (row === undefined || row.environment !== scope.environment) throw notFound("account");
  if (scope.externalUserId !== "" && row.externalUserId !== scope.externalUserId) throw notFound("account");
  requireRight(right, row);
  return row;
}

/** The account when it can be used; FAILED_PRECONDITION `ACCOUNT_REVOKED` when it could be once. */
export async function getAccount(
  db: AccountDatabase,
  scope: AccountScope,
  id: string,
  right: Right,
): Promise<AccountRow> {
  const row = await getAnyAccount(db, scope, id, right);
  if (row.revokeTime !== null) throw accountRevoked(row.revokeTime);
  return row;
}

/** Why an account cannot be used any more. */
export function accountRevoked(time: Date): StatusError {
  const message = `The account was revoked at ${time.toISOString()}.`;
  return new StatusError("FAILED_PRECONDITION", "ACCOUNT_REVOKED", message);
}

/** Notes that the account's credential was replaced. Undefined when it was revoked meanwhile. */
export async function updateReconnectedAccount(
  db: AccountDatabase,
  account: Pick<NewAccount, "projectId" | "id" | "name" | "oauthAppId" | "authorizedScopes" | keyof CredentialFacts>,
  time: Date,
): Promise<AccountRow | undefined> {
  const { projectId, id, name, oauthAppId, authorizedScopes } = account;
  const { credentialGeneration, expireTime, lastRefreshTime, nextRefreshTime } = account;
  const { grantExpireTime = null, grantNoticeTime = null } = account;
  return db
    .updateTable("accounts")
    .set({ oauthAppId, authorizedScopes, health: "HEALTHY", error: "", updateTime: time })
    .set({ credentialGeneration, expireTime, lastRefreshTime, nextRefreshTime })
    .set({ grantExpireTime, grantNoticeTime: untoldNotice(sql`${grantExpireTime}`, sql`${grantNoticeTime}`) })
    .$if(name !== "", (update) => update.set({ name }))
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "=", "ACTIVE")
    .returningAll()
    .executeTakeFirst();
}

/** When an end is to be told: never again where the account has that end already, and it was told. */
export function untoldNotice(expireTime: RawBuilder<unknown>, noticeTime: RawBuilder<unknown>) {
  return sql<Date | null>`case when accounts.grant_expire_time = ${expireTime}::moment then accounts.grant_notice_time
    else ${noticeTime}::moment end`;
}

/** Keeps others from changing the account until the transaction ends. */
export async function lockAccount(tx: AccountDatabase, { projectId }: AccountScope, id: string): Promise<void> {
  await tx
    .selectFrom("accounts")
    .select("id")
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .forUpdate()
    .execute();
}

/** The columns that the audit tells of an account. */
export const toldColumns = [
  ...(["environment", "externalUserId", "appSlug", "oauthAppId", "authorizedScopes", "name", "state"] as const),
  ...(["ownerMemberId", "sharing", "sharedMemberIds"] as const),
] as const;

/** What the audit tells of an account. */
export function toldOfAccount(row: Pick<AccountRow, (typeof toldColumns)[number]>): Told {
  const { environment, externalUserId, appSlug, oauthAppId, authorizedScopes } = row;
  const { name, state, ownerMemberId, sharing, sharedMemberIds } = row;
  return {
    ...{ environment, externalUserId, appSlug, oauthAppId, authorizedScopes },
    ...{ name, state, ownerMemberId, sharing, sharedMemberIds },
  };
}

/** Changes what people decide about an account; undefined when it is revoked. */
export async function updateAccount(
  db: AccountDatabase,
  { projectId, id }: Pick<AccountRow, "projectId" | "id">,
  change: Shared & Pick<AccountRow, "name">,
  time: Date,
): Promise<AccountRow | undefined> {
  return db
    .updateTable("accounts")
    .set({ ...change, updateTime: time })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "=", "ACTIVE")
    .returningAll()
    .executeTakeFirst();
}

// Counting takes as long as there is to count, and lists have to stay quick.
const mostCounted = 10_000;

/** Accounts of one state in the order in which they were connected; their total is counted up to 10,000. */
export async function listAccounts(
  db: AccountDatabase,
  filter: AccountFilter & { readonly state?: AccountRow["state"] },
  page: Page,
): Promise<PageOf<AccountRow>> {
  const matching = inState(db, filter, filter.state ?? "ACTIVE").where(
    allowedRows({ actor: filter.actor, operation: "view" }),
  );
  const inOrder = matching.orderBy("createTime").orderBy("id");
  const found = await inOrder
    .selectAll()
    .where(isAfter(page.after))
    .limit(page.size + 1)
    .execute();
  const isWhole = page.after === undefined && found.length <= page.size;
  return pageOf(found, page.size, isWhole ? found.length : await count(db, inOrder));
}

/** In order, so that Postgres walks the same index: it would read a table whole of which most is to be counted. */
async function count(db: AccountDatabase, inOrder: ReturnType<typeof matchingAccounts>): Promise<number> {
  const counted = inOrder.select("id").limit(sql.lit(mostCounted)).as("counted");
  const query = db.selectFrom(counted).select((select) => select.fn.countAll<bigint>().as("count"));
  return Number((await query.executeTakeFirstOrThrow()).count);
}

/** An account's key, in the order of keys. */
export type AccountKey = Pick<AccountRow, "projectId" | "id">;

/** The accounts of all projects that come after a key, without those that are revoked. */
export async function listAccountsByKey(
  db: AccountDatabase,
  after: AccountKey,
  limit: number,
): Promise<readonly AccountRow[]> {
  return db
    .selectFrom("accounts")
    .selectAll()
    .where(sql<boolean>`(project_id, id) > (${after.projectId}, ${after.id})`)
    .where("state", "<>", sql.lit("REVOKED"))
    .orderBy("projectId")
    .orderBy("id")
    .limit(limit)
    .execute();
}

// Written into the statement, not passed: only so can Postgres see that the partial indexes serve it.
function inState(db: AccountDatabase, filter: AccountFilter, state: AccountRow["state"]) {
  const rows = matchingAccounts(db, filter).where("state", "=", sql.lit(state));
  return state === "REVOKED" ? rows : rows.where("state", "<>", sql.lit("REVOKED"));
}

/** The accounts of a filter, in whatever state and whoever asks. */
export function matchingAccounts(db: AccountDatabase, filter: AccountFilter) {
  let rows = db
    .selectFrom("accounts")
    .where("projectId", "=", filter.projectId)
    .where("environment", "=", filter.environment as AccountRow["environment"]);
  if (filter.externalUserId !== "") rows = rows.where("externalUserId", "=", filter.externalUserId);
  if (filter.accountId) rows = rows.where("id", "=", filter.accountId);
  if (filter.appSlug) rows = rows.where("appSlug", "=", filter.appSlug);
  if (filter.oauthAppId) rows = rows.where("oauthAppId", "=", filter.oauthAppId);
  if (filter.health) rows = rows.where("health", "=", sql.lit(filter.health));
  return rows;
}
