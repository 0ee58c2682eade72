// The table of endpoints, the addresses that events are posted to, each with a circuit breaker. When several accounts' postings
// have failed one after the other the endpoint itself is taken for down: the breaker opens, and one posting at a time is sent
// as a probe, at growing distances, until one arrives. The accounts of the failures are counted, not the failures: one event
// that its receiver always refuses holds up its own account and nobody else.
import { createHash } from "node:crypto";
import { type Selectable, sql } from "kysely";
import type { AccountDatabase, EnvironmentNumber, WebhookEndpointsTable } from "./schema.ts";

/** One endpoint. */
export type WebhookEndpoint = Selectable<WebhookEndpointsTable>;

/** An environment of a project: it has one webhook at most. */
export interface EndpointScope {
  readonly projectId: string;
  readonly environment: number;
}

/** Names an endpoint. */
export interface EndpointKey extends EndpointScope {
  readonly endpointId: string;
}

const lanesToOpen = 5;
const firstProbeSeconds = 30;
const lastProbeSeconds = 15 * 60;
// Longer than a probe takes.
const probeMs = 60_000;

export async function findWebhook(db: AccountDatabase, scope: EndpointScope): Promise<WebhookEndpoint | undefined> {
  return inScope(db, scope).where("kind", "=", "WEBHOOK").executeTakeFirst();
}

export async function findEndpoint(db: AccountDatabase, key: EndpointKey): Promise<WebhookEndpoint | undefined> {
  return inScope(db, key).where("id", "=", key.endpointId).executeTakeFirst();
}

/** Makes the environment's webhook; one that is there (of a call at the same time) is a unique violation. */
export async function insertWebhook(
  db: AccountDatabase,
  { projectId, environment, id, url }: EndpointScope & { readonly id: string; readonly url: string },
  time: Date,
): Promise<WebhookEndpoint> {
  const row = { projectId, environment: environment as EnvironmentNumber, id, url, kind: "WEBHOOK" as const };
  return db
    .insertInto("webhookEndpoints")
    .values({ ...row, createTime: time, updateTime: time })
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Gives the webhook another address, of which nothing bad is known yet. */
export async function updateWebhookUrl(
  db: AccountDatabase,
  key: EndpointKey,
  url: string,
  time: Date,
): Promise<WebhookEndpoint | undefined> {
  return update(db, key)
    .set({ url, updateTime: time, ...closed })
    .returningAll()
    .executeTakeFirst();
}

/** Notes a change of the webhook's key. */
export async function touchWebhook(
  db: AccountDatabase,
  key: EndpointKey,
  time: Date,
): Promise<WebhookEndpoint | undefined> {
  return update(db, key).set({ updateTime: time }).returningAll().executeTakeFirst();
}

export async function deleteEndpoint(db: AccountDatabase, key: EndpointKey): Promise<void> {
  await db
    .deleteFrom("webhookEndpoints")
    .where("projectId", "=", key.projectId)
    .where("environment", "=", key.environment as EnvironmentNumber)
    .where("id", "=", key.endpointId)
    .execute();
}

/** The endpoint of an address that a connect token named: the same one each time, so that its breaker is one. */
export async function ensureConnectionEndpoint(
  db: AccountDatabase,
  { projectId, environment }: EndpointScope,
  url: string,
  time: Date,
): Promise<string> {
  const id = `whu_${createHash("sha256").update(url).digest("hex").slice(0, 32)}`;
  const row = { projectId, environment: environment as EnvironmentNumber, id, url, kind: "CONNECTION" as const };
  await db
    .insertInto("webhookEndpoints")
    .values({ ...row, createTime: time, updateTime: time })
    .onConflict((conflict) => conflict.doNothing())
    .execute();
  return id;
}

/** Whether something may be sent now: anything, one probe, or nothing before a time. */
export type Admission =
  | { readonly kind: "all" }
  | { readonly kind: "probe" }
  | { readonly kind: "none"; readonly until: Date };

/** Asks the breaker. Of several who ask when a probe is due, one gets it. */
export async function admitPosting(db: AccountDatabase, endpoint: WebhookEndpoint, time: Date): Promise<Admission> {
  const { openUntil } = endpoint;
  if (openUntil === null) return { kind: "all" };
  if (openUntil > time) return { kind: "none", until: openUntil };
  const until = new Date(time.getTime() + probeMs);
  const { numUpdatedRows } = await update(db, keyOf(endpoint))
    .set({ openUntil: until })
    .where("openUntil", "<=", time)
    .executeTakeFirst();
  return numUpdatedRows === 1n ? { kind: "probe" } : { kind: "none", until };
}

/** Notes that a posting arrived. */
export async function closeBreaker(db: AccountDatabase, key: EndpointKey): Promise<void> {
  await update(db, key)
    .set(closed)
    .where(({ eb, or }) => or([eb("openUntil", "is not", null), eb("failingLanes", "<>", sql<string[]>`'{}'`)]))
    .execute();
}

/** Notes that a posting failed. */
export async function noteFailedPosting(
  db: AccountDatabase,
  { lane, ...key }: EndpointKey & { readonly lane: string },
  time: Date,
  random: () => number,
): Promise<void> {
  // All in one statement: several fail at once. `failing` is what the lanes become.
  const failing = sql<string[]>`
    case when ${lane} = any(failing_lanes) or cardinality(failing_lanes) >= ${lanesToOpen}
      then failing_lanes else failing_lanes || ${lane}::text end`;
  const probes = sql<number>`case when open_until is null then 0 else failed_probes + 1 end`;
  const seconds = sql`least(${firstProbeSeconds} * power(2, least(${probes}, 10)), ${lastProbeSeconds}) * ${0.8 + 0.4 * random()}::float8`;
  await update(db, key)
    .set({
      failingLanes: failing,
      failedProbes: probes,
      lastFailureTime: time,
      openUntil: sql<Date | null>`
        case when open_until is null and cardinality(${failing}) < ${lanesToOpen} then null
        else ${time}::timestamptz + make_interval(secs => ${seconds}) end`,
    })
    .execute();
}

const closed = { failingLanes: [] as readonly string[], failedProbes: 0, openUntil: null, lastFailureTime: null };

/** Names the endpoint. */
export function keyOf({ projectId, environment, id }: WebhookEndpoint): EndpointKey {
  return { projectId, environment, endpointId: id };
}

function inScope(db: AccountDatabase, { projectId, environment }: EndpointScope) {
  return db
    .selectFrom("webhookEndpoints")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("environment", "=", environment as EnvironmentNumber);
}

function update(db: AccountDatabase, { projectId, environment, endpointId }: EndpointKey) {
  return db
    .updateTable("webhookEndpoints")
    .where("projectId", "=", projectId)
    .where("environment", "=", environment as EnvironmentNumber)
    .where("id", "=", endpointId);
}
