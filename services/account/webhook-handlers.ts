// A project's webhook, and the events that are posted to it. The key to sign with is made by the vault and stays there: this
// service passes it on once, and has each posting signed.
import { isUniqueViolation } from "#libs/database.ts";
import { judgeUrl } from "#libs/destination.ts";
import { invalidField, notFound, StatusError } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import type { ReplayEventsRequest, SetWebhookRequest, SetWebhookResponse } from "#proto/deputy/account/v1/events.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import { eventMessage, webhookMessage } from "./event-messages.ts";
import { listEvents, listEventsToReplay, type ReplayFilter } from "./events.ts";
import { afterwards, type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { requestedPage } from "./pages.ts";
import { getProject, holdProject } from "./projects.ts";
import type { AccountDatabase } from "./schema.ts";
import { abandonDeliveries, insertDeliveries, listDeliveries } from "./webhook-deliveries.ts";
import {
  deleteEndpoint,
  type EndpointScope,
  findWebhook,
  insertWebhook,
  keyOf,
  touchWebhook,
  updateWebhookUrl,
  type WebhookEndpoint,
} from "./webhook-endpoints.ts";
import { hurryLanes } from "./webhook-lanes.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "createWebhookKey" | "destroyWebhookKey">;
  /** `host:port` of receivers that may be on loopback: development only. */
  readonly exemptTargets: readonly string[];
}

type Methods = "setWebhook" | "getWebhook" | "deleteWebhook" | "rotateWebhookKey" | "listEvents" | "replayEvents";

const replayLimit = 10_000;

export function webhookHandlers({ db, vault, exemptTargets }: Collaborators, now: () => number): HandlerGroup<Methods> {
  /** The key is made first, so that the webhook is never without one; that of a webhook that could not be made is destroyed. */
  async function create(request: SetWebhookRequest, call: Call): Promise<SetWebhookResponse> {
    const { projectId, environment, url } = request;
    await getProject(db, projectId);
    const id = newId("whk");
    const key = { projectId, environment, webhookId: id };
    const { signingKey } = await vault.createWebhookKey(key, ownRight(call));
    try {
      const time = new Date(now());
      const webhook = await db.transaction().execute(async (tx) => {
        await holdProject(tx, projectId);
        const row = await insertWebhook(tx, { projectId, environment, id, url }, time);
        const told = { projectId, action: "SetWebhook", resourceId: id, after: { url } };
        await insertAuditEntries(tx, call, time, told);
        return row;
      });
      return { webhook: webhookMessage(webhook), signingKey };
    } catch (error) {
      await vault.destroyWebhookKey(key, afterwards(call)).catch(() => undefined);
      throw isUniqueViolation(error, "webhook_endpoints_one") ? concurrentChange() : error;
    }
  }

  /** What was waiting goes to the new address. */
  async function change(before: WebhookEndpoint, url: string, call: Call): Promise<SetWebhookResponse> {
    const time = new Date(now());
    const webhook = await db.transaction().execute(async (tx) => {
      const row = await updateWebhookUrl(tx, keyOf(before), url, time);
      if (row === undefined) throw concurrentChange();
      await hurryLanes(tx, keyOf(before), time);
      const told = { before: { url: before.url }, after: { url } };
      await insertAuditEntries(tx, call, time, {
        ...{ projectId: before.projectId, action: "SetWebhook", resourceId: before.id },
        ...told,
      });
      return row;
    });
    return { webhook: webhookMessage(webhook), signingKey: "" };
  }

  async function getWebhook(scope: EndpointScope): Promise<WebhookEndpoint> {
    const webhook = await findWebhook(db, scope);
    if (webhook === undefined) throw notFound("webhook");
    return webhook;
  }

  return {
    async setWebhook(request, call) {
      const target = judgeUrl(request.url, { exemptTargets });
      if (target.kind === "deny") throw invalidField("url", target.message);
      const before = await findWebhook(db, request);
      return before ? change(before, request.url, call) : create(request, call);
    },

    async getWebhook(request) {
      const webhook = await findWebhook(db, request);
      return { webhook: webhook && webhookMessage(webhook) };
    },

    async deleteWebhook(request, call) {
      const webhook = await findWebhook(db, request);
      if (webhook === undefined) return {};
      const { projectId, environment, id, url } = webhook;
      const time = new Date(now());
      await db.transaction().execute(async (tx) => {
        await deleteEndpoint(tx, keyOf(webhook));
        await abandonDeliveries(tx, keyOf(webhook), time);
        const told = { projectId, action: "DeleteWebhook", resourceId: id, before: { url } };
        await insertAuditEntries(tx, call, time, told);
      });
      await vault.destroyWebhookKey({ projectId, environment, webhookId: id }, afterwards(call));
      return {};
    },

    async rotateWebhookKey(request, call) {
      const { projectId, environment, id } = await getWebhook(request);
      const { signingKey } = await vault.createWebhookKey({ projectId, environment, webhookId: id }, ownRight(call));
      const time = new Date(now());
      const webhook = await db.transaction().execute(async (tx) => {
        await insertAuditEntries(tx, call, time, { projectId, action: "RotateWebhookKey", resourceId: id });
        return touchWebhook(tx, { projectId, environment, endpointId: id }, time);
      });
      if (webhook === undefined) throw concurrentChange();
      return { webhook: webhookMessage(webhook), signingKey };
    },

    async listEvents(request) {
      const { projectId, environment, accountId, type } = request;
      const filter = { projectId, environment, accountId, type };
      const { rows, nextPageToken } = await listEvents(db, filter, requestedPage(request));
      const ids = rows.map(({ id }) => id);
      const deliveries = await listDeliveries(db, projectId, ids);
      return { events: rows.map((row) => eventMessage(row, deliveries)), nextPageToken };
    },

    async replayEvents(request, call) {
      const filter = replayFilter(request, now());
      const { id: resourceId } = await getWebhook(request);
      const time = new Date(now());
      return db.transaction().execute(async (tx) => {
        const found = await listEventsToReplay(tx, filter, replayLimit + 1);
        const events = found.slice(0, replayLimit);
        const data = (value: unknown) => value as Readonly<Record<string, unknown>>;
        const posted = events.map((event) => ({ ...event, data: data(event.data) }));
        const replayedCount = await insertDeliveries(tx, posted, time);
        const eventIds = events.length > 100 ? [] : events.map(({ id }) => id);
        const after = { ...filter, eventIds, count: replayedCount };
        const told = { projectId: request.projectId, action: "ReplayEvents", resourceId, after };
        await insertAuditEntries(tx, call, time, told);
        return { replayedCount, nextStartTime: found[replayLimit]?.createTime };
      });
    },
  };
}

function replayFilter(request: ReplayEventsRequest, nowMs: number): ReplayFilter {
  const { projectId, environment, eventIds, startTime, endTime, failedOnly } = request;
  if (eventIds.length > 0 && (startTime || endTime || failedOnly)) {
    throw invalidField("event_ids", "go without start_time, end_time and failed_only");
  }
  if (eventIds.length === 0 && startTime === undefined) {
    throw invalidField("start_time", "is required unless event_ids are given");
  }
  return { projectId, environment, eventIds, startTime, endTime: endTime ?? new Date(nowMs + 1), failedOnly };
}

function concurrentChange(): StatusError {
  return new StatusError("ABORTED", "CONCURRENT_CHANGE", "The webhook was changed meanwhile: call again.");
}
