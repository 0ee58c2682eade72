// Posts events to their endpoints: signed by the vault, as Standard Webhooks has it, through the egress rules. Anything but a
// status from 200 to 299 within 15 s is a failure, a redirect too. When a failed posting is made again is in posting-times.ts, how
// lanes and claims keep the order in webhook-lanes.ts, what a down endpoint costs in webhook-endpoints.ts.
import { judgeUrl } from "#libs/destination.ts";
import type { Egress } from "#libs/egress.ts";
import { EgressError } from "#libs/egress-error.ts";
import { newId } from "#libs/ids.ts";
import type { Logger } from "#libs/log.ts";
import type { EventBodies } from "./event-bodies.ts";
import { readRetryAfter, retryTime } from "./posting-times.ts";
import type { AccountDatabase } from "./schema.ts";
import {
  abandonDeliveries,
  findNextDelivery,
  requestDeliveryAt,
  updateDelivery,
  type WebhookDelivery,
} from "./webhook-deliveries.ts";
import {
  admitPosting,
  closeBreaker,
  type EndpointKey,
  findEndpoint,
  keyOf,
  noteFailedPosting,
  type WebhookEndpoint,
} from "./webhook-endpoints.ts";
import {
  type ClaimedLane,
  claimLane,
  countDueLanes,
  deleteLane,
  extendClaim,
  hurryLanes,
  lockLane,
  nextDueTime,
  releaseLane,
} from "./webhook-lanes.ts";

/** Gives the signature header; undefined where there is no key to sign with. */
export type Sign = (
  endpoint: EndpointKey,
  message: { readonly id: string; readonly timestamp: number; readonly body: Buffer },
) => Promise<string | undefined>;

/** What events are posted with. */
export interface DeliveryOptions {
  readonly db: AccountDatabase;
  readonly sign: Sign;
  readonly bodies: EventBodies;
  readonly outgoing: { readonly egress: Egress; readonly exemptTargets: readonly string[] };
  readonly log: Logger;
}

/** What became of an attempt. */
type Outcome =
  | { readonly kind: "delivered" }
  | { readonly kind: "failed"; readonly error: string; readonly retryAfterSeconds?: number }
  /** A fault of ours, the vault away: not the endpoint's to answer for. */
  | { readonly kind: "not_sent" };

const timeoutMs = 15_000;
// A claim outlives a signature (5 s) and a posting.
const claimMs = 30_000;
const maxAnswerBytes = 65_536;
// Then another endpoint has its turn.
const turnMs = 30_000;
const maxWorkers = 10;
const nextTurnMs = 1_000;
const faultWaitMs = 5_000;

/** Posts what is due of an endpoint, until nothing is, its turn is over, or the signal fires. Then asks to be called again. */
export async function deliverEvents(
  options: DeliveryOptions,
  key: EndpointKey,
  now: () => number,
  signal: AbortSignal,
): Promise<void> {
  const { db } = options;
  const endpoint = await findEndpoint(db, key);
  if (endpoint === undefined) return abandonDeliveries(db, key, new Date(now()));
  const endMs = performance.now() + turnMs;
  const turn = { now, isOver: () => signal.aborted || performance.now() > endMs };
  const admission = await admitPosting(db, endpoint, new Date(now()));
  // Most calls are for one event, or come while others are at it already.
  const workers = admission.kind === "all" ? await countDueLanes(db, key, new Date(now()), maxWorkers) : 0;
  const results =
    admission.kind === "all"
      ? await Promise.all(Array.from({ length: workers }, () => postAll(options, endpoint, turn)))
      : admission.kind === "probe"
        ? [await postNext(options, endpoint, turn)]
        : [];
  if (admission.kind === "probe" && results[0] === "delivered") await hurryLanes(db, key, new Date(now()));
  const due = await nextDueTime(db, key);
  if (due === undefined) return;
  const open = (await findEndpoint(db, key))?.openUntil?.getTime() ?? 0;
  const rested = results.includes("not_sent") ? now() + faultWaitMs : 0;
  // Lanes that are due still wait for a place, or for the next turn.
  await requestDeliveryAt(db, key, new Date(Math.max(due.getTime(), open, rested, now() + nextTurnMs)));
}

/** How a turn goes: its time, and whether it is over. */
interface Turn {
  readonly now: () => number;
  readonly isOver: () => boolean;
}

type LaneResult = Outcome["kind"] | "nothing_due";

/** One lane after the other, while the endpoint is not taken for down. */
async function postAll(options: DeliveryOptions, endpoint: WebhookEndpoint, turn: Turn): Promise<LaneResult> {
  for (;;) {
    const result = turn.isOver() ? "nothing_due" : await postNext(options, endpoint, turn);
    if (result === "nothing_due" || result === "not_sent") return result;
    if (result === "failed" && (await findEndpoint(options.db, keyOf(endpoint)))?.openUntil) return result;
  }
}

/** Posts the events of the next lane until one fails. */
async function postNext(options: DeliveryOptions, endpoint: WebhookEndpoint, turn: Turn): Promise<LaneResult> {
  const { db } = options;
  const { now, isOver } = turn;
  const until = () => new Date(now() + claimMs);
  const claim = { claimId: newId("int"), time: new Date(now()), until: until() };
  let claimEndMs = performance.now() + claimMs;
  const lane = await claimLane(db, keyOf(endpoint), claim);
  if (lane === undefined) return "nothing_due";
  for (let result: LaneResult = "nothing_due"; ; ) {
    const delivery = await findNextDelivery(db, lane);
    if (delivery === undefined) {
      if (await endLane(db, lane)) return result;
      continue;
    }
    if (result !== "nothing_due" && isOver()) {
      await releaseLane(db, lane, new Date(now()));
      return result;
    }
    const outcome = await post(options, endpoint, delivery, { now, claimEndMs });
    result = outcome.kind;
    if (!(await noteOutcome(options, lane, delivery, outcome, now))) return result;
    claimEndMs = performance.now() + claimMs;
    await extendClaim(db, lane, until());
  }
}

/** Takes the lane away unless something has come meanwhile. */
function endLane(db: AccountDatabase, lane: ClaimedLane): Promise<boolean> {
  return db.transaction().execute(async (transaction) => {
    if (!(await lockLane(transaction, lane))) return true;
    if (await findNextDelivery(transaction, lane)) return false;
    await deleteLane(transaction, lane);
    return true;
  });
}

async function post(
  { db, sign, bodies, outgoing: { egress, exemptTargets }, log }: DeliveryOptions,
  endpoint: WebhookEndpoint,
  { projectId, eventId }: WebhookDelivery,
  { now, claimEndMs }: { readonly now: () => number; readonly claimEndMs: number },
): Promise<Outcome> {
  const key = keyOf(endpoint);
  try {
    const body = await bodies(db, endpoint, { projectId, eventId });
    if (body === undefined) return { kind: "failed", error: "The event is not there any more." };
    const timestamp = Math.floor(now() / 1000);
    const signature = await sign(key, { id: eventId, timestamp, body });
    const target = judgeUrl(endpoint.url, { exemptTargets });
    if (target.kind === "deny") return { kind: "failed", error: target.message };
    const { status, headers } = await egress.send({
      url: target.url,
      method: "POST",
      headers: [
        ["content-type", "application/json"],
        ["user-agent", "Deputy-Webhooks/1"],
        ["webhook-id", eventId],
        ["webhook-timestamp", String(timestamp)],
        ...(signature === undefined ? [] : [["webhook-signature", signature] as const]),
      ],
      body,
      totalTimeoutMs: timeoutMs,
      maxBodyBytes: maxAnswerBytes,
      // A process that was halted meanwhile may not send what another one is at.
      mayStart: () => performance.now() + timeoutMs <= claimEndMs,
    });
    if (status >= 200 && status < 300) return { kind: "delivered" };
    const hint = status >= 300 && status < 400 ? ": redirects are not followed" : "";
    const retryAfterSeconds = readRetryAfter(
      headers.find(([name]) => name.toLowerCase() === "retry-after")?.[1],
      now(),
    );
    return { kind: "failed", error: `The endpoint answered with status ${status}${hint}.`, retryAfterSeconds };
  } catch (error) {
    if (error instanceof EgressError && error.kind !== "aborted" && error.kind !== "withdrawn") {
      return { kind: "failed", error: error.message };
    }
    log.warn({ ...key, eventId, err: error }, "an event could not be posted");
    return { kind: "not_sent" };
  }
}

/** Writes it down. True when the lane goes on with the next event. */
async function noteOutcome(
  { db, log }: DeliveryOptions,
  lane: ClaimedLane,
  delivery: WebhookDelivery,
  outcome: Outcome,
  now: () => number,
): Promise<boolean> {
  const time = new Date(now());
  const { eventId, attempts, expireTime } = delivery;
  if (outcome.kind === "not_sent") {
    await releaseLane(db, lane, new Date(now() + faultWaitMs));
    return false;
  }
  const isLast = outcome.kind === "failed" && expireTime <= time;
  const isHeld = await db.transaction().execute(async (transaction) => {
    // Not ours any more: another one is at it, and notes what comes of that.
    if (!(await lockLane(transaction, lane))) return false;
    if (outcome.kind === "delivered") {
      await updateDelivery(transaction, delivery, { state: "DELIVERED", lastError: "", time });
      return true;
    }
    const state = isLast ? "FAILED" : "PENDING";
    await updateDelivery(transaction, delivery, { state, lastError: outcome.error, time });
    const retry = { attempts: attempts + 1, retryAfterSeconds: outcome.retryAfterSeconds ?? 0 };
    if (!isLast) await releaseLane(transaction, lane, retryTime(retry, expireTime, time, Math.random));
    return true;
  });
  if (outcome.kind === "delivered") await closeBreaker(db, lane);
  else await noteFailedPosting(db, lane, time, Math.random);
  const { projectId, environment, endpointId } = lane;
  const line = { projectId, environment, endpointId, eventId, attempts: attempts + 1 };
  if (outcome.kind === "delivered") log.debug(line, "an event was delivered");
  else log.warn({ ...line, error: outcome.error, givenUp: isLast }, "an event was not taken");
  return isHeld && (outcome.kind === "delivered" || isLast);
}
