// Webhooks, events and their postings as the contract's messages.
import { type Event, type EventDelivery, EventDeliveryState, type Webhook } from "#proto/deputy/account/v1/events.ts";
import { eventData } from "./event-bodies.ts";
import type { StoredEvent } from "./events.ts";
import type { WebhookDelivery } from "./webhook-deliveries.ts";
import type { WebhookEndpoint } from "./webhook-endpoints.ts";

export function webhookMessage({ id, url, createTime, updateTime }: WebhookEndpoint): Webhook {
  return { id, url, createTime, updateTime };
}

/** `deliveries` holds those of this and other events, oldest first. */
export function eventMessage(event: StoredEvent, deliveries: readonly WebhookDelivery[]): Event {
  const { id, type, accountId, externalUserId, createTime } = event;
  const of = (isConnection: boolean) =>
    deliveries.findLast(({ eventId, endpointId }) => eventId === id && endpointId.startsWith("whu_") === isConnection);
  return {
    ...{ id, type, accountId, externalUserId, createTime, data: eventData(event) },
    delivery: deliveryMessage(of(false)),
    connectionDelivery: deliveryMessage(of(true)),
  };
}

function deliveryMessage(row: WebhookDelivery | undefined): EventDelivery | undefined {
  if (row === undefined) return undefined;
  const { state, attempts, lastError, completeTime } = row;
  return { state: EventDeliveryState[state], attempts, lastError, completeTime: completeTime ?? undefined };
}
