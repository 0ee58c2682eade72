// How accounts are doing. The vault alone sees refreshes fail; what it tells is taken over here: health and times onto the
// account, and an event for each change of the health, in one transaction with the note of how far the vault was read. Of several
// processes that read the same, one finds the note as it read it and the others throw theirs away: each change is told once.
//
// One failed refresh is no news: most pass by themselves, and the token that is there still works. An account is UNHEALTHY when
// refreshes have failed three times in a row (half a minute), or one has and the token has ended; HEALTHY again with the next
// that succeeds, after which none is due for a good part of the token's life; so one that comes and goes makes two events in that
// time. DEAD is what only its user can mend.
//
// What the vault tells may be older than what this service knows: a user connects anew while a refusal of the old grant is on
// its way. The generation of the credential tells: of an older one nothing is taken over.
import { sql } from "kysely";
import { untoldNotice } from "./accounts.ts";
import { type EventType, insertEvents, type NewEvent } from "./events.ts";
import { reconnectData } from "./expiring-accounts.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

/** A credential as the vault tells of it. */
export interface CredentialReport {
  readonly projectId: string;
  readonly accountId: string;
  readonly state: "ACTIVE" | "UNKNOWN" | "NEEDS_REAUTH" | "REVOKED";
  /** Why, by its name; empty while all is well. */
  readonly reason: string;
  readonly generation: number;
  /** Refreshes that failed in a row. */
  readonly failures: number;
  readonly expireTime: Date | null;
  readonly lastRefreshTime: Date | null;
  readonly nextRefreshTime: Date | null;
  /** When its user has to connect again, and from when on that is to be told: expiring-accounts.ts. */
  readonly grantExpireTime: Date | null;
  readonly grantNoticeTime: Date | null;
}

/** A batch of them: what was read from a place, and the place after it. */
export interface ReportBatch {
  readonly from: string;
  readonly to: string;
  readonly reports: readonly CredentialReport[];
}

const failuresUntilUnhealthy = 3;

/** How far the vault was read. */
export async function readWatchPlace(db: AccountDatabase): Promise<string> {
  const { pageToken } = await db.selectFrom("credentialWatch").select("pageToken").executeTakeFirstOrThrow();
  return pageToken;
}

/** What became of a batch: taken over, read by another process as well, or in the way of a change that is being made. */
export type TakeOverOutcome = "taken" | "stale" | "busy";

/** Takes a batch over. `connectPage` is where users connect again. */
export async function takeOverReports(
  db: AccountDatabase,
  { from, to, reports }: ReportBatch,
  { time, connectPage }: { readonly time: Date; readonly connectPage: string },
): Promise<TakeOverOutcome> {
  return db.transaction().execute(async (tx): Promise<TakeOverOutcome> => {
    const { numUpdatedRows } = await tx
      .updateTable("credentialWatch")
      .set({ pageToken: to })
      .where("pageToken", "=", from)
      .executeTakeFirst();
    if (numUpdatedRows !== 1n) return "stale";
    const rows = await lockAccounts(tx, reports);
    if (rows === undefined) {
      await tx.updateTable("credentialWatch").set({ pageToken: from }).execute();
      return "busy";
    }
    const changes = rows.flatMap(({ row, report }) => changeOf(row, report, time) ?? []);
    await updateAccounts(tx, changes, time);
    await insertEvents(tx, time, ...changes.flatMap((change) => eventOf(change, connectPage) ?? []));
    return "taken";
  });
}

interface Change {
  readonly row: AccountRow;
  readonly report: CredentialReport;
  readonly health: AccountRow["health"];
  readonly error: string;
}

/** The accounts that can still be used, held until the transaction ends; undefined when another one holds some of them. */
async function lockAccounts(tx: AccountDatabase, reports: readonly CredentialReport[]) {
  const ids = reports.map(({ accountId }) => accountId);
  const projects = reports.map(({ projectId }) => projectId);
  const usable = tx
    .selectFrom("accounts")
    .where(sql<boolean>`(project_id, id) in (select * from unnest(${projects}::text[], ${ids}::text[]))`)
    .where("state", "=", "ACTIVE");
  // Nothing is waited for with rows in hand: who revokes many at once takes them in another order.
  const held = await usable.selectAll().forUpdate().skipLocked().execute();
  const { count } = await usable.select(({ fn }) => fn.countAll<bigint>().as("count")).executeTakeFirstOrThrow();
  if (BigInt(held.length) !== count) return undefined;
  const keyOf = (projectId: string, id: string) => `${projectId} ${id}`;
  const byAccount = new Map(held.map((row) => [keyOf(row.projectId, row.id), row]));
  return reports.flatMap((report) => {
    const row = byAccount.get(keyOf(report.projectId, report.accountId));
    return row ? [{ row, report }] : [];
  });
}

/** What a report changes; undefined for nothing. */
function changeOf(row: AccountRow, report: CredentialReport, time: Date): Change | undefined {
  if (report.state === "REVOKED" || report.generation < (row.credentialGeneration ?? 0)) return undefined;
  const health = healthOf(row.health, report, time);
  const error = health === "HEALTHY" ? "" : errorText(report.reason);
  const isSame =
    health === row.health &&
    error === row.error &&
    report.generation === row.credentialGeneration &&
    timeColumns.every((name) => report[name]?.getTime() === row[name]?.getTime());
  return isSame ? undefined : { row, report, health, error };
}

/** The health that a report means. */
export function healthOf(before: AccountRow["health"], report: CredentialReport, time: Date): AccountRow["health"] {
  const { state, reason, failures, expireTime } = report;
  if (state === "NEEDS_REAUTH") return "DEAD";
  if (reason === "") return "HEALTHY";
  // Quarantined: nothing is tried any more.
  if (reason === "QUARANTINED" || failures >= failuresUntilUnhealthy || (expireTime !== null && expireTime <= time))
    return "UNHEALTHY";
  return before === "DEAD" ? "UNHEALTHY" : before;
}

const timeColumns = ["expireTime", "lastRefreshTime", "nextRefreshTime", "grantExpireTime"] as const;

async function updateAccounts(tx: AccountDatabase, changes: readonly Change[], time: Date): Promise<void> {
  if (changes.length === 0) return;
  const column = <Value>(value: (change: Change) => Value) => changes.map(value);
  await sql`
    update accounts set health = given.health, error = given.error, credential_generation = given.generation,
      expire_time = given.expire_time, last_refresh_time = given.last_refresh_time,
      next_refresh_time = given.next_refresh_time, grant_expire_time = given.grant_expire_time,
      grant_notice_time = ${untoldNotice(sql`given.grant_expire_time`, sql`given.grant_notice_time`)},
      update_time = case when accounts.health = given.health then accounts.update_time else ${time} end
    from unnest(${column(({ row }) => row.projectId)}::text[], ${column(({ row }) => row.id)}::text[],
      ${column(({ health }) => health)}::text[], ${column(({ error }) => error)}::text[],
      ${column(({ report }) => report.generation)}::int[], ${column(({ report }) => report.expireTime)}::timestamptz[],
      ${column(({ report }) => report.lastRefreshTime)}::timestamptz[],
      ${column(({ report }) => report.nextRefreshTime)}::timestamptz[],
      ${column(({ report }) => report.grantExpireTime)}::timestamptz[],
      ${column(({ report }) => report.grantNoticeTime)}::timestamptz[])
      as given (project_id, id, health, error, generation, expire_time, last_refresh_time, next_refresh_time,
        grant_expire_time, grant_notice_time)
    where accounts.project_id = given.project_id and accounts.id = given.id`.execute(tx);
}

const eventTypes: Readonly<Record<AccountRow["health"], EventType>> = {
  HEALTHY: "account.recovered",
  UNHEALTHY: "account.unhealthy",
  DEAD: "account.dead",
};

function eventOf({ row, report, health, error }: Change, connectPage: string): NewEvent | undefined {
  if (health === row.health) return undefined;
  const { projectId, environment, externalUserId, id: accountId, appSlug: app } = row;
  const wrong = health === "HEALTHY" ? {} : { reason: report.reason, error };
  const reconnect = health === "DEAD" && { reconnect: reconnectData(row, connectPage) };
  const data = { app, ...wrong, ...reconnect };
  return { projectId, environment, externalUserId, accountId, type: eventTypes[health], data };
}

const errorTexts: Readonly<Record<string, string>> = {
  INVALID_GRANT: "The provider has ended the grant: the user has to connect again.",
  GRANT_REFUSED: "The provider refuses the grant: the user has to connect again.",
  GRANT_LOST: "The grant was lost in a refresh: the user has to connect again.",
  NO_REFRESH_TOKEN:
    "The access token has ended, and there is nothing to refresh it with: the user has to connect again.",
  PROVIDER_FAILING: "The provider fails when the access token is to be refreshed: it is tried again.",
  ANSWER_LOST: "The answer to a refresh was lost: it is tried again.",
  OAUTH_CLIENT_REJECTED: "The provider refuses the OAuth client: check the OAuth app's id and secret.",
  QUARANTINED: "The credential cannot be read: the operator has to look after it, or the user connects again.",
  BLAST_RADIUS_GUARD: "The provider refuses many grants of this app at once: they are kept and tried again.",
};

function errorText(reason: string): string {
  return errorTexts[reason] ?? `The credential cannot be refreshed (${reason}).`;
}
