// The table of events: what happened to accounts and connections, for whoever listens. An event is written in the transaction
// of the change that it tells. It holds no secret.
import { type Selectable, sql } from "kysely";
import { newId } from "#libs/ids.ts";
import { insertRows } from "#libs/insert-rows.ts";
import { isBefore, type Page, type PageOf, pageOf } from "./pages.ts";
import type { AccountDatabase, EventRow } from "./schema.ts";
import { insertConnectionDeliveries, insertDeliveries } from "./webhook-deliveries.ts";

/** Every kind of event. */
export type EventType =
  | "account.connected"
  | "account.reconnected"
  | "account.unhealthy"
  | "account.recovered"
  | "account.dead"
  | "account.expiring"
  | "account.revoked"
  | "connection.failed";

/** Something that has happened. */
export type NewEvent = Pick<EventRow, "projectId" | "environment" | "externalUserId" | "accountId"> & {
  readonly type: EventType;
  /** What is told of it, without secrets; times as `Date`. */
  readonly data: Readonly<Record<string, unknown>>;
};

/** Writes events and has them posted to whoever is to hear of them; call it in the transaction of the change. */
export async function insertEvents(db: AccountDatabase, time: Date, ...events: readonly NewEvent[]): Promise<void> {
  if (events.length === 0) return;
  const named = events.map((event) => ({ ...event, id: newId("evt") }));
  await insertRows(db, "events", named, { createTime: sql`${time}::moment` });
  await insertDeliveries(db, named, time);
  await insertConnectionDeliveries(db, named, time);
}

/** An event as it was written. */
export type StoredEvent = Selectable<EventRow>;

/** Which events; what is empty lets all through. */
export interface EventFilter {
  readonly projectId: string;
  readonly environment: number;
  readonly accountId: string;
  readonly type: string;
}

/** Events, newest first. */
export async function listEvents(db: AccountDatabase, filter: EventFilter, page: Page): Promise<PageOf<StoredEvent>> {
  let rows = inEnvironment(db, filter);
  if (filter.accountId !== "") rows = rows.where("accountId", "=", filter.accountId);
  if (filter.type !== "") rows = rows.where("type", "=", filter.type);
  const found = await rows
    .where(isBefore(page.after))
    .orderBy("createTime", "desc")
    .orderBy("id", "desc")
    .limit(page.size + 1)
    .execute();
  return pageOf(found, page.size, 0);
}

/** Which events are to be posted once more: named ones, or those of a time. */
export interface ReplayFilter extends Pick<EventFilter, "projectId" | "environment"> {
  readonly eventIds: readonly string[];
  readonly startTime: Date | undefined;
  readonly endTime: Date;
  readonly failedOnly: boolean;
}

/** Events in the order in which they happened; held, so that they are not deleted for their age before they are posted. */
export async function listEventsToReplay(
  db: AccountDatabase,
  filter: ReplayFilter,
  limit: number,
): Promise<readonly StoredEvent[]> {
  const { eventIds, startTime, endTime, failedOnly } = filter;
  let rows = inEnvironment(db, filter);
  if (eventIds.length > 0) rows = rows.where("id", "=", sql<string>`any(${eventIds})`);
  if (startTime) rows = rows.where("createTime", ">=", startTime).where("createTime", "<", endTime);
  if (failedOnly) rows = rows.where(sql<boolean>`${newestDelivery} = 'FAILED'`);
  return rows.orderBy("createTime").orderBy("sequence").limit(limit).forKeyShare().execute();
}

const newestDelivery = sql`(
  select state from webhook_deliveries as posted
  where posted.project_id = events.project_id and posted.event_id = events.id and posted.endpoint_id like 'whk%'
  order by sequence desc limit 1)`;

function inEnvironment(
  db: AccountDatabase,
  { projectId, environment }: Pick<EventFilter, "projectId" | "environment">,
) {
  return db
    .selectFrom("events")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("environment", "=", environment as EventRow["environment"]);
}
