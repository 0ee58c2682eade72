// Deletes what is of no use any more, in batches, whichever process does it: events that are older than they are kept for, with
// their postings, and connections and connect tokens that ended as long ago. An event that is still to be posted stays until that
// has ended; connections stay a day longer than events, which name them. The audit stays for good.
import { sql } from "kysely";
import type { AccountDatabase } from "./schema.ts";

const batchSize = 1_000;
const dayMs = 24 * 3_600_000;

/** Deletes what is older than `time`, until nothing is left or the signal fires. */
export async function pruneHistory(db: AccountDatabase, time: Date, signal: AbortSignal): Promise<void> {
  const dayBefore = new Date(time.getTime() - dayMs);
  for (const prune of [
    () => pruneEvents(db, time),
    () => pruneConnections(db, dayBefore),
    () => pruneConnectTokens(db, dayBefore),
  ]) {
    while (!signal.aborted && (await prune()) === batchSize);
  }
}

/** Locked, so that one that is being posted again at this moment stays. */
async function pruneEvents(db: AccountDatabase, time: Date): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    with old as materialized (
      select project_id, id from events
      where create_time < ${time} and not exists (
        select from webhook_deliveries as waiting
        where waiting.project_id = events.project_id and waiting.event_id = events.id and waiting.state = 'PENDING')
      order by create_time limit ${batchSize} for update skip locked
    ), posted as (
      delete from webhook_deliveries using old
      where webhook_deliveries.project_id = old.project_id and webhook_deliveries.event_id = old.id
    ), gone as (
      delete from events using old where events.project_id = old.project_id and events.id = old.id returning events.id
    )
    select count(*)::int as count from gone`.execute(db);
  return rows[0]?.count ?? 0;
}

async function pruneConnections(db: AccountDatabase, time: Date): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from connections using (
      select project_id, id from connections
      where expire_time < ${time} and state in ('SUCCEEDED', 'FAILED')
      order by expire_time limit ${batchSize} for update skip locked
    ) as old
    where connections.project_id = old.project_id and connections.id = old.id`.execute(db);
  return Number(numAffectedRows ?? 0);
}

async function pruneConnectTokens(db: AccountDatabase, time: Date): Promise<number> {
  const { numAffectedRows } = await sql`
    delete from connect_tokens using (
      select project_id, id from connect_tokens
      where expire_time < ${time} and not exists (
        select from connections
        where connections.project_id = connect_tokens.project_id and connections.connect_token_id = connect_tokens.id)
      order by expire_time limit ${batchSize} for update skip locked
    ) as old
    where connect_tokens.project_id = old.project_id and connect_tokens.id = old.id`.execute(db);
  return Number(numAffectedRows ?? 0);
}
