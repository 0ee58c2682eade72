// The table of postings: one event to one endpoint, from the transaction of the event on, and how it went.
import { type Selectable, sql } from "kysely";
import type { AccountDatabase, WebhookDeliveriesTable } from "./schema.ts";
import { deleteEndpoint, type EndpointKey, ensureConnectionEndpoint } from "./webhook-endpoints.ts";
import { ensureLanes, type LaneKey } from "./webhook-lanes.ts";

/** One posting. */
export type WebhookDelivery = Selectable<WebhookDeliveriesTable>;

/** The queue's task that posts what is due of an endpoint: deliver-events.ts. */
export const deliverTask = "deliver";

/** What a posting is made of. */
export interface PostedEvent {
  readonly projectId: string;
  readonly environment: number;
  readonly id: string;
  readonly accountId: string;
  readonly data: Readonly<Record<string, unknown>>;
}

// For so long a posting is tried.
const lifetimeMs = 24 * 3_600_000;

/**
 * Has events posted to their project's webhook, where there is one. Call it in the transaction that writes the events: the
 * queue is told with it. Gives how many are on their way.
 */
export async function insertDeliveries(
  db: AccountDatabase,
  events: readonly PostedEvent[],
  time: Date,
): Promise<number> {
  return insert(
    db,
    events.map((event) => ({ ...event, endpointId: "" })),
    time,
  );
}

/** The same for the addresses that connect tokens named: in the events' data, as `webhookUri`. */
export async function insertConnectionDeliveries(
  db: AccountDatabase,
  events: readonly PostedEvent[],
  time: Date,
): Promise<void> {
  const given = [];
  for (const event of events) {
    const { webhookUri } = event.data;
    if (typeof webhookUri !== "string" || webhookUri === "") continue;
    given.push({ ...event, endpointId: await ensureConnectionEndpoint(db, event, webhookUri, time) });
  }
  await insert(db, given, time);
}

async function insert(
  db: AccountDatabase,
  events: readonly (PostedEvent & { readonly endpointId: string })[],
  time: Date,
): Promise<number> {
  if (events.length === 0) return 0;
  const column = <Value>(value: (event: (typeof events)[number]) => Value) => events.map(value);
  // A replay takes a new place in the lane. What is waiting already keeps its own.
  const { rows } = await sql<LaneKey>`
    insert into webhook_deliveries
      (project_id, environment, endpoint_id, event_id, lane, create_time, expire_time)
    select given.project_id, given.environment, endpoints.id, given.event_id, given.lane,
      ${time}::timestamptz, ${new Date(time.getTime() + lifetimeMs)}::timestamptz
    from unnest(${column(({ projectId }) => projectId)}::text[], ${column(({ environment }) => environment)}::int[],
        ${column(({ endpointId }) => endpointId)}::text[], ${column(({ id }) => id)}::text[],
        ${column(laneOf)}::text[]) with ordinality
      as given (project_id, environment, endpoint_id, event_id, lane, place)
    join webhook_endpoints as endpoints
      on endpoints.project_id = given.project_id and endpoints.environment = given.environment
        and (case when given.endpoint_id = '' then endpoints.kind = 'WEBHOOK' else endpoints.id = given.endpoint_id end)
    order by given.place
    on conflict (project_id, event_id, endpoint_id) do update
      set state = 'PENDING', attempts = 0, last_error = '', complete_time = null,
        sequence = excluded.sequence, create_time = excluded.create_time, expire_time = excluded.expire_time
      where webhook_deliveries.state <> 'PENDING'
    returning project_id, environment, endpoint_id, lane`.execute(db);
  await ensureLanes(db, rows, time);
  for (const endpoint of distinctEndpoints(rows)) await requestDelivery(db, endpoint);
  return rows.length;
}

/** Asks the queue to look at an endpoint now. */
export async function requestDelivery(db: AccountDatabase, endpoint: EndpointKey): Promise<void> {
  // Without a job key: transactions that write events at the same time would wait for one another on its row.
  await sql`
    select graphile_worker.add_job(${deliverTask}, ${payloadOf(endpoint)}::json, max_attempts => 3)`.execute(db);
}

/** Asks the queue to look at an endpoint at a time, in the place of what was asked so before. */
export async function requestDeliveryAt(db: AccountDatabase, endpoint: EndpointKey, time: Date): Promise<void> {
  const { projectId, environment, endpointId } = endpoint;
  const key = `${deliverTask} ${projectId} ${environment} ${endpointId}`;
  await sql`
    select graphile_worker.add_job(${deliverTask}, ${payloadOf(endpoint)}::json, max_attempts => 3,
      run_at => ${time}::timestamptz, job_key => ${key}, job_key_mode => 'replace')`.execute(db);
}

/** The next posting of a lane. */
export async function findNextDelivery(db: AccountDatabase, lane: LaneKey): Promise<WebhookDelivery | undefined> {
  return db
    .selectFrom("webhookDeliveries")
    .selectAll()
    .where("projectId", "=", lane.projectId)
    .where("environment", "=", lane.environment as WebhookDelivery["environment"])
    .where("endpointId", "=", lane.endpointId)
    .where("lane", "=", lane.lane)
    .where("state", "=", sql.lit("PENDING"))
    .orderBy("sequence")
    .limit(1)
    .executeTakeFirst();
}

/** Notes how a posting went. */
export async function updateDelivery(
  db: AccountDatabase,
  { projectId, eventId, endpointId, attempts }: WebhookDelivery,
  outcome: { readonly state: WebhookDelivery["state"]; readonly lastError: string; readonly time: Date },
): Promise<void> {
  const { state, lastError, time } = outcome;
  await db
    .updateTable("webhookDeliveries")
    .set({ state, lastError, attempts: attempts + 1, completeTime: state === "PENDING" ? null : time })
    .where("projectId", "=", projectId)
    .where("eventId", "=", eventId)
    .where("endpointId", "=", endpointId)
    .execute();
}

/** Gives up everything that waits for an endpoint, which is no more. */
export async function abandonDeliveries(db: AccountDatabase, key: EndpointKey, time: Date): Promise<void> {
  await waitingFor(db, key)
    .set({ state: "FAILED", lastError: "The webhook was deleted.", completeTime: time })
    .execute();
  await db
    .deleteFrom("webhookLanes")
    .where("projectId", "=", key.projectId)
    .where("environment", "=", key.environment as WebhookDelivery["environment"])
    .where("endpointId", "=", key.endpointId)
    .execute();
}

/** Forgets those of these addresses of connect tokens that no token names any more, with what was waiting for them. */
export async function deleteUnusedConnectionEndpoints(
  tx: AccountDatabase,
  { projectId, environment }: Pick<WebhookDelivery, "projectId" | "environment">,
  urls: readonly string[],
  time: Date,
): Promise<void> {
  const unused = await tx
    .selectFrom("webhookEndpoints")
    .select("id")
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .where("kind", "=", "CONNECTION")
    .where("url", "=", sql<string>`any(${urls})`)
    .where(({ not, exists, selectFrom }) =>
      not(
        exists(
          selectFrom("connectTokens")
            .select("id")
            .where("projectId", "=", projectId)
            .where("environment", "=", environment)
            .whereRef("connectTokens.webhookUri", "=", "webhookEndpoints.url"),
        ),
      ),
    )
    .execute();
  for (const { id: endpointId } of unused) {
    await deleteEndpoint(tx, { projectId, environment, endpointId });
    await abandonDeliveries(tx, { projectId, environment, endpointId }, time);
  }
}

/**
 * Gives up what has waited its time behind an open breaker: a probe was sent after that time, and failed as well. What nobody
 * could try, because no process was running, is not given up by this.
 */
export async function expireDeliveries(db: AccountDatabase, time: Date): Promise<void> {
  await sql`
    update webhook_deliveries as waiting set state = 'FAILED', complete_time = ${time},
      last_error = case when waiting.last_error = '' then 'The endpoint did not take anything for 24 hours.'
        else waiting.last_error end
    from webhook_endpoints as endpoints
    where endpoints.open_until is not null and waiting.project_id = endpoints.project_id
      and waiting.environment = endpoints.environment and waiting.endpoint_id = endpoints.id
      and waiting.state = 'PENDING' and waiting.expire_time <= endpoints.last_failure_time`.execute(db);
}

/** How the postings of events go, the newest of each kind: to the project's webhook, and to the connect token's address. */
export async function listDeliveries(
  db: AccountDatabase,
  projectId: string,
  eventIds: readonly string[],
): Promise<readonly WebhookDelivery[]> {
  return db
    .selectFrom("webhookDeliveries")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("eventId", "=", sql<string>`any(${eventIds})`)
    .orderBy("sequence")
    .execute();
}

function waitingFor(db: AccountDatabase, key: EndpointKey) {
  return db
    .updateTable("webhookDeliveries")
    .where("projectId", "=", key.projectId)
    .where("environment", "=", key.environment as WebhookDelivery["environment"])
    .where("endpointId", "=", key.endpointId)
    .where("state", "=", sql.lit("PENDING"));
}

/** Events of one account, or else of one connection, are posted one after the other. */
function laneOf({ id, accountId, data: { connectionId } }: PostedEvent): string {
  return accountId || (typeof connectionId === "string" ? connectionId : id) || id;
}

function payloadOf({ projectId, environment, endpointId }: EndpointKey): string {
  return JSON.stringify({ projectId, environment, endpointId });
}

function distinctEndpoints(keys: readonly EndpointKey[]): readonly EndpointKey[] {
  return [...new Map(keys.map((key) => [payloadOf(key), key])).values()];
}
