// The lanes in which events are posted: one for each account and endpoint, so that the events of an account arrive in their
// order, and one that is refused holds up those behind it and no other account. The truth is in these rows; the queue's jobs
// are only calls to look at them (deliver-events.ts), so a job that is lost or that runs twice does no harm.
//
// A lane is there while something of it is waiting. Who posts claims it for a time, longer than a posting takes, and may end it
// while the claim is its own. Killed at any point: the claim runs out and the posting is made again; what was answered but not
// noted is posted twice. Lost is nothing: an event, its posting and its lane are written in the transaction of the change, and
// a posting leaves PENDING only after an answer or after 24 hours. Whoever writes a posting locks the lane's row afterwards, and
// whoever finds nothing waiting and deletes the lane has locked it before looking: so none is left without a lane.
import { type Expression, type SqlBool, sql } from "kysely";
import type { AccountDatabase } from "./schema.ts";
import type { EndpointKey } from "./webhook-endpoints.ts";

/** Names a lane. */
export interface LaneKey extends EndpointKey {
  readonly lane: string;
}

/** A lane, with the claim that its holder has on it. */
export interface ClaimedLane extends LaneKey {
  readonly claimId: string;
}

// Postings to one endpoint at a time, over all processes: a slow receiver is neither flooded nor in the way of others.
const maxClaimsPerEndpoint = 10;

/** Puts lanes there, due now; those that are there keep their time. */
export async function ensureLanes(db: AccountDatabase, lanes: readonly LaneKey[], time: Date): Promise<void> {
  if (lanes.length === 0) return;
  const column = (name: keyof LaneKey) => lanes.map((lane) => lane[name]);
  // In one order whoever writes, so that two never wait for one another.
  await sql`
    insert into webhook_lanes (project_id, environment, endpoint_id, lane, due_time)
    select distinct p, e, i, l, ${time}::timestamptz
    from unnest(${column("projectId")}::text[], ${column("environment")}::int[],
      ${column("endpointId")}::text[], ${column("lane")}::text[]) as given (p, e, i, l)
    order by 1, 2, 3, 4
    on conflict (project_id, environment, endpoint_id, lane) do update set due_time = webhook_lanes.due_time`.execute(
    db,
  );
}

/** Takes the lane of an endpoint that has waited longest, if one is due and the endpoint has a place free. */
export async function claimLane(
  db: AccountDatabase,
  { projectId, environment, endpointId }: EndpointKey,
  { claimId, time, until }: { readonly claimId: string; readonly time: Date; readonly until: Date },
): Promise<ClaimedLane | undefined> {
  const { rows } = await sql<{ lane: string }>`
    with taken as (
      select count(*) as claims from webhook_lanes
      where project_id = ${projectId} and environment = ${environment} and endpoint_id = ${endpointId}
        and claimed_until > ${time}
    ), next as (
      select project_id, environment, endpoint_id, lane from webhook_lanes, taken
      where project_id = ${projectId} and environment = ${environment} and endpoint_id = ${endpointId}
        and due_time <= ${time} and (claimed_until is null or claimed_until <= ${time})
        and claims < ${maxClaimsPerEndpoint}
      order by due_time limit 1 for update of webhook_lanes skip locked
    )
    update webhook_lanes set claim_id = ${claimId}, claimed_until = ${until}
    from next
    where webhook_lanes.project_id = next.project_id and webhook_lanes.environment = next.environment
      and webhook_lanes.endpoint_id = next.endpoint_id and webhook_lanes.lane = next.lane
    returning webhook_lanes.lane`.execute(db);
  const [row] = rows;
  return row && { projectId, environment, endpointId, lane: row.lane, claimId };
}

/** How many of an endpoint's lanes are due and nobody is at, up to a number. */
export async function countDueLanes(db: AccountDatabase, key: EndpointKey, time: Date, limit: number): Promise<number> {
  const { rows } = await sql<{ lanes: number }>`
    select count(*)::int as lanes from (
      select from webhook_lanes
      where ${isEndpoint(key)} and due_time <= ${time} and (claimed_until is null or claimed_until <= ${time})
      limit ${limit}
    ) as due`.execute(db);
  return rows[0]?.lanes ?? 0;
}

/** Locks a lane in a transaction, while the claim on it holds. */
export async function lockLane(transaction: AccountDatabase, lane: ClaimedLane): Promise<boolean> {
  const row = await transaction
    .selectFrom("webhookLanes")
    .select("lane")
    .where(isLane(lane))
    .where("claimId", "=", lane.claimId)
    .forUpdate()
    .executeTakeFirst();
  return row !== undefined;
}

/** Keeps the claim for longer, if it is one still. */
export async function extendClaim(db: AccountDatabase, lane: ClaimedLane, until: Date): Promise<void> {
  await db
    .updateTable("webhookLanes")
    .where(isLane(lane))
    .where("claimId", "=", lane.claimId)
    .set({ claimedUntil: until })
    .execute();
}

/** Gives a lane back, to be looked at from a time on. */
export async function releaseLane(db: AccountDatabase, lane: ClaimedLane, dueTime: Date): Promise<void> {
  await db
    .updateTable("webhookLanes")
    .where(isLane(lane))
    .set({ claimId: null, claimedUntil: null, dueTime })
    .where("claimId", "=", lane.claimId)
    .execute();
}

/** Takes away a lane of which nothing is waiting. */
export async function deleteLane(transaction: AccountDatabase, lane: LaneKey): Promise<void> {
  await transaction.deleteFrom("webhookLanes").where(isLane(lane)).execute();
}

/** Makes all of an endpoint's lanes due: it may work again. */
export async function hurryLanes(db: AccountDatabase, key: EndpointKey, time: Date): Promise<void> {
  await db
    .updateTable("webhookLanes")
    .where(isEndpoint(key))
    .set({ dueTime: time })
    .where("dueTime", ">", time)
    .execute();
}

/** When an endpoint has something to do next; undefined when nothing is waiting. */
export async function nextDueTime(db: AccountDatabase, key: EndpointKey): Promise<Date | undefined> {
  const row = await db
    .selectFrom("webhookLanes")
    .where(isEndpoint(key))
    .select(sql<Date | null>`min(greatest(due_time, coalesce(claimed_until, due_time)))`.as("next"))
    .executeTakeFirst();
  return row?.next ?? undefined;
}

/** Endpoints with lanes. */
export async function listWaiting(db: AccountDatabase): Promise<readonly EndpointKey[]> {
  return db.selectFrom("webhookLanes").select(["projectId", "environment", "endpointId"]).distinct().execute();
}

/** Endpoints with lanes that nobody is at although they have been due since a time. */
export async function listOverdue(db: AccountDatabase, since: Date, now: Date): Promise<readonly EndpointKey[]> {
  const { rows } = await sql<EndpointKey>`
    select distinct lanes.project_id, lanes.environment, lanes.endpoint_id
    from webhook_lanes as lanes left join webhook_endpoints as endpoints
      on endpoints.project_id = lanes.project_id and endpoints.environment = lanes.environment
        and endpoints.id = lanes.endpoint_id
    where lanes.due_time <= ${since} and (lanes.claimed_until is null or lanes.claimed_until <= ${now})
      and (endpoints.open_until is null or endpoints.open_until <= ${now})`.execute(db);
  return rows;
}

// A condition that every statement of this file takes: kysely's own builders have no common type to filter.
function isLane({ lane, ...key }: LaneKey): Expression<SqlBool> {
  return sql`${isEndpoint(key)} and lane = ${lane}`;
}

function isEndpoint({ projectId, environment, endpointId }: EndpointKey): Expression<SqlBool> {
  return sql`project_id = ${projectId} and environment = ${environment} and endpoint_id = ${endpointId}`;
}
