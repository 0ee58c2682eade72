// The table of accounts as revocation goes through it: ACTIVE, then REVOKING, then REVOKED, each step one statement, and each
// account by itself. For a caller who acts for a member, a filter takes what that member may delete.
import { sql } from "kysely";
import { type AccountFilter, matchingAccounts, toldColumns } from "./accounts.ts";
import { allowedRows } from "./member-rights.ts";
import { isAfter, type Page } from "./pages.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

/** How many accounts are still to be revoked, those whose revocation was begun before among them. */
export async function countUnrevoked(db: AccountDatabase, filter: AccountFilter): Promise<number> {
  return count(unrevoked(db, filter));
}

/** How many have been revoked. */
export async function countRevoked(db: AccountDatabase, filter: AccountFilter): Promise<number> {
  return count(revoked(db, filter));
}

/** The next accounts that would be revoked, for a dry run. */
export async function listUnrevoked(db: AccountDatabase, filter: AccountFilter, page: Page): Promise<AccountRow[]> {
  return nextOf(unrevoked(db, filter), page);
}

/** The next tombstones. */
export async function listRevoked(db: AccountDatabase, filter: AccountFilter, page: Page): Promise<AccountRow[]> {
  return nextOf(revoked(db, filter), page);
}

const claimedColumns = ["projectId", "id", "createTime", "revokeTime", ...toldColumns] as const;

/** Of an account, what its revocation works with. */
export type ClaimedAccount = Pick<AccountRow, (typeof claimedColumns)[number]>;

/** Begins the revocation of the next accounts, oldest first, or takes it up again: from here on they are refused. */
export async function claimForRevocation(
  db: AccountDatabase,
  filter: AccountFilter,
  { size, after }: Page,
  time: Date,
): Promise<readonly ClaimedAccount[]> {
  const from = unrevoked(db, filter).where(isAfter(after));
  const next = from.select("id").orderBy("createTime").orderBy("id").limit(size).forUpdate();
  return (
    db
      .with(
        (cte) => cte("next").materialized(),
        () => next,
      )
      .with("claimed", (update) =>
        update
          .updateTable("accounts")
          .from("next")
          .set((set) => ({
            state: "REVOKING",
            updateTime: time,
            revokeTime: set.fn.coalesce("revokeTime", set.val(time)),
          }))
          .where("accounts.projectId", "=", filter.projectId)
          .whereRef("accounts.id", "=", "next.id")
          .returning(claimedColumns.map((column) => `accounts.${column}` as const)),
      )
      // The update by itself gives them in no order, and the next page begins after the last.
      .selectFrom("claimed")
      .select(claimedColumns)
      .orderBy("createTime")
      .orderBy("id")
      .execute()
  );
}

/** Ends the revocation of accounts whose credentials the vault has destroyed; gives the ids of those that nobody had ended before. */
export async function finishRevocation(
  db: AccountDatabase,
  projectId: string,
  ids: readonly string[],
  time: Date,
): Promise<ReadonlySet<string>> {
  // In the order of those who claim, so that two never wait for one another.
  const ending = db
    .selectFrom("accounts")
    .select("id")
    .where("projectId", "=", projectId)
    .where("id", "=", sql<string>`any(${ids})`)
    .where("state", "=", "REVOKING")
    .orderBy("createTime")
    .orderBy("id")
    .forUpdate();
  const ended = await db
    .with("ending", () => ending)
    .updateTable("accounts")
    .from("ending")
    .set({ state: "REVOKED", updateTime: time })
    .where("accounts.projectId", "=", projectId)
    .whereRef("accounts.id", "=", "ending.id")
    .returning("accounts.id")
    .execute();
  return new Set(ended.map(({ id }) => id));
}

// The state is written into the statement, not passed: only so can Postgres see that the partial indexes serve it.
function unrevoked(db: AccountDatabase, filter: AccountFilter) {
  return deletable(db, filter).where("state", "<>", sql.lit("REVOKED"));
}

function revoked(db: AccountDatabase, filter: AccountFilter) {
  return deletable(db, filter).where("state", "=", sql.lit("REVOKED"));
}

function deletable(db: AccountDatabase, filter: AccountFilter) {
  return matchingAccounts(db, filter).where(allowedRows({ actor: filter.actor, operation: "manage" }));
}

type Rows = ReturnType<typeof deletable>;

function nextOf(rows: Rows, page: Page): Promise<AccountRow[]> {
  return rows.selectAll().where(isAfter(page.after)).orderBy("createTime").orderBy("id").limit(page.size).execute();
}

async function count(rows: Rows): Promise<number> {
  const { total } = await rows.select((select) => select.fn.countAll<bigint>().as("total")).executeTakeFirstOrThrow();
  return Number(total);
}
