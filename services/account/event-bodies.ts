// What is posted of an event: to a project's webhook as Standard Webhooks has it, and to a connect token's address in the form
// that receivers of connection webhooks know. Neither holds a secret.
import type { CatalogApp } from "#libs/catalog.ts";
import { digest } from "#libs/ids.ts";
import { appId } from "./app-choice.ts";
import type { CatalogOf } from "./own-apps.ts";
import type { AccountDatabase, AccountRow, EventRow } from "./schema.ts";
import type { WebhookEndpoint } from "./webhook-endpoints.ts";

/** The bytes to be posted of an event to an endpoint; undefined when the event is not there any more. */
export type EventBodies = (
  db: AccountDatabase,
  endpoint: WebhookEndpoint,
  event: { readonly projectId: string; readonly eventId: string },
) => Promise<Buffer | undefined>;

/** Makes them with what the catalog says of apps. */
export function eventBodies(catalogOf: CatalogOf): EventBodies {
  return async (db, { kind }, { projectId, eventId }) => {
    const event = await db
      .selectFrom("events")
      .selectAll()
      .where("projectId", "=", projectId)
      .where("id", "=", eventId)
      .executeTakeFirst();
    if (event === undefined) return undefined;
    const body = kind === "WEBHOOK" ? webhookBody(event) : await connectionBody(db, catalogOf, event);
    return Buffer.from(JSON.stringify(body));
  };
}

type Event = Omit<EventRow, "data" | "sequence"> & { readonly data: unknown };

/** What happened: names as in REST, times as ISO texts. */
export function eventData({ data }: { readonly data: unknown }): Record<string, unknown> {
  const { webhookUri: _, ...told } = data as Record<string, unknown>;
  return renamed(told) as Record<string, unknown>;
}

function webhookBody(event: Event) {
  const { type, createTime, projectId, environment, externalUserId, accountId } = event;
  const about = {
    project_id: projectId,
    environment: environmentNames[environment],
    external_user_id: externalUserId,
    account_id: accountId || null,
  };
  return { type, timestamp: createTime.toISOString(), data: { ...about, ...eventData(event) } };
}

const environmentNames = { 1: "development", 2: "production" } as const;

async function connectionBody(db: AccountDatabase, catalogOf: CatalogOf, event: Event) {
  const { projectId, environment, accountId, type } = event;
  const { connectionId = "", error = "" } = event.data as Readonly<Record<string, string | undefined>>;
  const connection = await db
    .selectFrom("connections")
    .select("connectTokenId")
    .where("projectId", "=", projectId)
    .where("id", "=", connectionId)
    .executeTakeFirst();
  const session = {
    // The token's id: of the token itself only a digest is kept.
    connect_token: connection?.connectTokenId ?? null,
    environment: environmentNames[environment],
    connect_session_id: sessionNumber(connectionId || event.id),
  };
  if (type === "connection.failed") return { event: "CONNECTION_ERROR", ...session, error };
  const account = await db
    .selectFrom("accounts")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("id", "=", accountId)
    .executeTakeFirst();
  const told = account ? accountJson(account, (await catalogOf(projectId)).get(account.appSlug)) : { id: accountId };
  return { event: "CONNECTION_SUCCESS", ...session, account: told };
}

/** A number that JavaScript holds exactly, the same for each posting of a connection. */
function sessionNumber(connectionId: string): number {
  return digest(connectionId).readUIntBE(0, 6);
}

function accountJson(account: AccountRow, app: CatalogApp | undefined) {
  const { id, name, externalUserId, health, appSlug, oauthAppId, createTime, updateTime } = account;
  return {
    id,
    name: name || null,
    external_id: externalUserId,
    healthy: health === "HEALTHY",
    dead: health === "DEAD",
    app: { ...(app ? appJson(app) : { name_slug: appSlug }), ...(oauthAppId !== "" && { id: oauthAppId }) },
    created_at: createTime.toISOString(),
    updated_at: updateTime.toISOString(),
  };
}

const authTypes = { oauth2: "oauth", keys: "keys", none: "none" } as const;

function appJson(app: CatalogApp) {
  const { proxy } = app;
  return {
    id: appId(app),
    name_slug: app.slug,
    name: app.name,
    auth_type: authTypes[app.auth],
    description: app.description || null,
    img_src: app.image_url,
    custom_fields_json: JSON.stringify(
      app.custom_fields.map(({ name, label, description, default: value, optional, secret }) => ({
        ...{ name, label, description, default: value || null, optional },
        type: secret ? "password" : "string",
      })),
    ),
    categories: app.categories,
    featured_weight: app.featured_weight,
    connect: {
      proxy_enabled: proxy.enabled,
      allowed_domains: proxy.allowed_domains,
      base_proxy_target_url: proxy.base_url,
    },
  };
}

/** Our names are camelCase, those on the wire snake_case. */
function renamed(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(renamed);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).map(([name, inner]) => [
    name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
    renamed(inner),
  ]);
  return Object.fromEntries(entries);
}
