// Accounts whose users will have to connect again, told some days ahead: as `account.expiring`, once for each end. The vault knows
// the ends and from when on they are to be told (services/vault/grants.ts); here they stand with the account as it learned of them
// (health.ts). Telling takes the time away from the account in the transaction of the event, so that of any number of processes one
// tells it; an end that is put off by a use, or comes with a new grant, brings a new time. Nobody is told of an account that is dead,
// which was told by itself, or revoked.
import { sql } from "kysely";
import { insertEvents, type NewEvent } from "./events.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

const batchSize = 500;

/** Tells of all that are due, a batch in a transaction. Several processes may do so at once. */
export async function tellExpiring(db: AccountDatabase, time: Date, connectPage: string): Promise<void> {
  while ((await tellBatch(db, time, connectPage)) === batchSize);
}

async function tellBatch(db: AccountDatabase, time: Date, connectPage: string): Promise<number> {
  return db.transaction().execute(async (tx) => {
    const due = tx
      .selectFrom("accounts")
      .select(["projectId", "id"])
      .where("grantNoticeTime", "<=", time)
      .where("state", "=", sql.lit("ACTIVE"))
      .where("health", "<>", sql.lit("DEAD"))
      .orderBy("grantNoticeTime")
      .limit(batchSize)
      .forUpdate()
      // What somebody is changing is told by a later look.
      .skipLocked();
    const rows = await tx
      .with("due", () => due)
      .updateTable("accounts")
      .from("due")
      .set({ grantNoticeTime: null })
      .whereRef("accounts.projectId", "=", "due.projectId")
      .whereRef("accounts.id", "=", "due.id")
      .returningAll("accounts")
      .execute();
    await insertEvents(tx, time, ...rows.map((row) => expiringEvent(row, connectPage)));
    return rows.length;
  });
}

function expiringEvent(row: AccountRow, connectPage: string): NewEvent {
  const { projectId, environment, externalUserId, id: accountId, appSlug: app, grantExpireTime } = row;
  const data = { app, expireTime: grantExpireTime, reconnect: reconnectData(row, connectPage) };
  return { projectId, environment, externalUserId, accountId, type: "account.expiring", data };
}

/** What a product needs to make a link by which a user connects an account again. */
export function reconnectData({ externalUserId, id: accountId, appSlug: app }: AccountRow, connectPage: string) {
  return { connectPage, externalUserId, accountId, app };
}

/** Where users connect. */
export function connectPageOf(gatewayUrl: string): string {
  return new URL("/_static/connect.html", gatewayUrl).href;
}
