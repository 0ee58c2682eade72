// The table of events: what happened to accounts and connections, for whoever listens. An event is written in the transaction
// of the change that it tells. It holds no secret.
import { newId } from "#libs/ids.ts";
import type { AccountDatabase, EventRow } from "./schema.ts";

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

/** Writes events; call it in the transaction of the change. */
export async function insertEvents(db: AccountDatabase, time: Date, ...events: readonly NewEvent[]): Promise<void> {
  if (events.length === 0) return;
  const rows = events.map(({ data, ...event }) => ({
    ...{ ...event, id: newId("evt"), createTime: time },
    data: JSON.stringify(data),
  }));
  await db.insertInto("events").values(rows).execute();
}
