// The table of accounts, the usable ones and the tombstones. Every lookup is keyed by project, environment and, where one
// is given, user: an account of somebody else is not found rather than refused.
//
// An account is ACTIVE, then REVOKING (refused from here on, its credential perhaps still there), then REVOKED (the vault
// has confirmed). It never goes back, and REVOKING is no dead end: whoever revokes again takes it up.
import { sql } from "kysely";
import { notFound, StatusError } from "#libs/errors.ts";
import { isAfter, type Page, type PageOf, pageOf } from "./pages.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

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
}

/** What the vault tells of a credential that it has stored. */
export type CredentialFacts = Pick<
  AccountRow,
  "credentialGeneration" | "expireTime" | "lastRefreshTime" | "nextRefreshTime"
>;

/** What a new account is made of. */
export type NewAccount = Partial<CredentialFacts> &
  Omit<AccountRow, "state" | "health" | "error" | "createTime" | "updateTime" | "revokeTime" | keyof CredentialFacts>;

export async function insertAccount(db: AccountDatabase, account: NewAccount, time: Date): Promise<AccountRow> {
  const fresh = { state: "ACTIVE", health: "HEALTHY", error: "", createTime: time, updateTime: time } as const;
  return db
    .insertInto("accounts")
    .values({ ...account, ...fresh })
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** The account in whatever state. */
export async function getAnyAccount(db: AccountDatabase, scope: AccountScope, id: string): Promise<AccountRow> {
  const row = await db
    .selectFrom("accounts")
    .selectAll()
    .where("projectId", "=", scope.projectId)
    .where("id", "=", id)
    .executeTakeFirst();
  if (row === undefined || row.environment !== scope.environment) throw notFound("account");
  if (scope.externalUserId !== "" && row.externalUserId !== scope.externalUserId) throw notFound("account");
  return row;
}

/** The account when it can be used; FAILED_PRECONDITION `ACCOUNT_REVOKED` when it could be once. */
export async function getAccount(db: AccountDatabase, scope: AccountScope, id: string): Promise<AccountRow> {
  const row = await getAnyAccount(db, scope, id);
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
  return db
    .updateTable("accounts")
    .set({ oauthAppId, authorizedScopes, health: "HEALTHY", error: "", updateTime: time })
    .set({ credentialGeneration, expireTime, lastRefreshTime, nextRefreshTime })
    .$if(name !== "", (update) => update.set({ name }))
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "=", "ACTIVE")
    .returningAll()
    .executeTakeFirst();
}

/** Usable accounts in the order in which they were connected. */
export async function listAccounts(
  db: AccountDatabase,
  filter: AccountFilter,
  page: Page,
): Promise<PageOf<AccountRow>> {
  const matching = unrevoked(db, filter).where("state", "=", "ACTIVE");
  const rows = matching
    .selectAll()
    .where(isAfter(page.after))
    .orderBy("createTime")
    .orderBy("id")
    .limit(page.size + 1);
  const count = matching.select((select) => select.fn.countAll<bigint>().as("count"));
  const [found, { count: total }] = await Promise.all([rows.execute(), count.executeTakeFirstOrThrow()]);
  return pageOf(found, page.size, Number(total));
}

/** How many accounts are still to be revoked, those whose revocation was begun before among them. */
export async function countUnrevoked(db: AccountDatabase, filter: AccountFilter): Promise<number> {
  const count = unrevoked(db, filter).select((select) => select.fn.countAll<bigint>().as("count"));
  return Number((await count.executeTakeFirstOrThrow()).count);
}

/** The next accounts that would be revoked, for a dry run. */
export async function listUnrevoked(
  db: AccountDatabase,
  filter: AccountFilter,
  page: Page,
): Promise<readonly AccountRow[]> {
  return unrevoked(db, filter)
    .selectAll()
    .where(isAfter(page.after))
    .orderBy("createTime")
    .orderBy("id")
    .limit(page.size)
    .execute();
}

/** Begins the revocation of the next accounts, oldest first, or takes it up again: from here on they are refused. */
export async function claimForRevocation(
  db: AccountDatabase,
  filter: AccountFilter,
  limit: number,
  time: Date,
): Promise<readonly AccountRow[]> {
  const next = unrevoked(db, filter).select("id").orderBy("createTime").orderBy("id").limit(limit).forUpdate();
  return db
    .with(
      (cte) => cte("next").materialized(),
      () => next,
    )
    .updateTable("accounts")
    .from("next")
    .set((set) => ({
      state: "REVOKING",
      updateTime: time,
      revokeTime: set.fn.coalesce("revokeTime", set.val(time)),
    }))
    .where("accounts.projectId", "=", filter.projectId)
    .whereRef("accounts.id", "=", "next.id")
    .returningAll("accounts")
    .execute();
}

/** Ends the revocation of accounts whose credentials the vault has destroyed. */
export async function finishRevocation(
  db: AccountDatabase,
  projectId: string,
  ids: readonly string[],
  time: Date,
): Promise<void> {
  await db
    .updateTable("accounts")
    .set({ state: "REVOKED", updateTime: time })
    .where("projectId", "=", projectId)
    .where("id", "=", sql<string>`any(${ids})`)
    .where("state", "=", "REVOKING")
    .execute();
}

// The state is written into the statement, not passed: only so can Postgres see that the partial indexes serve it.
function unrevoked(db: AccountDatabase, filter: AccountFilter) {
  let rows = db
    .selectFrom("accounts")
    .where("projectId", "=", filter.projectId)
    .where("environment", "=", filter.environment as AccountRow["environment"])
    .where("state", "<>", sql.lit("REVOKED"));
  if (filter.externalUserId !== "") rows = rows.where("externalUserId", "=", filter.externalUserId);
  if (filter.accountId) rows = rows.where("id", "=", filter.accountId);
  if (filter.appSlug) rows = rows.where("appSlug", "=", filter.appSlug);
  if (filter.oauthAppId) rows = rows.where("oauthAppId", "=", filter.oauthAppId);
  if (filter.health) rows = rows.where("health", "=", filter.health);
  return rows;
}
