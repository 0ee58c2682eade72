// The table of management actions: who changed what. An entry is written in the transaction of the change that it tells, so
// that neither is there without the other; the service may add entries and read them, and nothing else. No secret stands in
// one: `before` and `after` are what callers may see of the resource.
import { type Selectable, sql } from "kysely";
import { newId } from "#libs/ids.ts";
import { insertRows } from "#libs/insert-rows.ts";
import type { Call } from "#libs/rpc.ts";
import { isBefore, type Page, type PageOf, pageOf } from "./pages.ts";
import type { AccountDatabase, AuditEntryRow, Told } from "./schema.ts";

/** One action, as the RPC's name, on one resource. */
export interface NewAuditEntry {
  readonly projectId: string;
  readonly action: string;
  readonly resourceId: string;
  /** Absent for what was not there before. */
  readonly before?: Told;
  /** Absent for what is not there any more. */
  readonly after?: Told;
}

/** Writes entries; call it in the transaction of the change. */
export async function insertAuditEntries(
  db: AccountDatabase,
  call: Pick<Call, "caller" | "requestId">,
  time: Date,
  ...entries: readonly NewAuditEntry[]
): Promise<void> {
  if (entries.length === 0) return;
  const [actor, { requestId }] = [actorOf(call), call];
  const rows = entries.map(({ before, after, ...entry }) => ({
    ...{ ...entry, id: newId("aud") },
    ...{ before: before ?? null, after: after ?? null },
  }));
  const common = { createTime: sql`${time}::moment`, actor: sql`${actor}::text`, requestId: sql`${requestId}::text` };
  await insertRows(db, "auditEntries", rows, common);
}

/** Which entries; what is empty or not given lets all through. */
export interface AuditFilter {
  readonly projectId: string;
  readonly actor: string;
  readonly action: string;
  readonly resourceId: string;
  readonly startTime?: Date | undefined;
  /** Exclusive. */
  readonly endTime?: Date | undefined;
}

/** An entry as it is read. */
export type AuditEntry = Selectable<AuditEntryRow>;

/** Entries, newest first. */
export async function listAuditEntries(
  db: AccountDatabase,
  { projectId, actor, action, resourceId, startTime, endTime }: AuditFilter,
  page: Page,
): Promise<PageOf<AuditEntry>> {
  let matching = db.selectFrom("auditEntries").selectAll().where("projectId", "=", projectId);
  if (actor !== "") matching = matching.where("actor", "=", actor);
  if (action !== "") matching = matching.where("action", "=", action);
  if (resourceId !== "") matching = matching.where("resourceId", "=", resourceId);
  if (startTime !== undefined) matching = matching.where("createTime", ">=", startTime);
  if (endTime !== undefined) matching = matching.where("createTime", "<", endTime);
  const rows = await matching
    .where(isBefore(page.after))
    .orderBy("createTime", "desc")
    .orderBy("id", "desc")
    .limit(page.size + 1)
    .execute();
  return pageOf(rows, page.size, rows.length);
}

/** Who made a call: `member:<id>`, `user:<external user id>`, an API client's id, or `service:<name>`. */
export function actorOf({ caller: { service, token } }: Pick<Call, "caller">): string {
  // Before the member: a user's browser may come with a connect token that was made for one.
  if (token?.externalUserId !== undefined) return `user:${token.externalUserId}`;
  if (token?.actor !== undefined) return `member:${token.actor.memberId}`;
  return token?.subject ?? `service:${service ?? ""}`;
}
