// What a project leaves when it is deleted, ended step by step: what was being connected, webhooks and the keys they are signed
// with, OAuth clients (the project's, and those that its users brought), and its own apps. Wherever the vault holds a part of
// something that part goes first and the row here after it, so that nothing is left that nobody could name; each step may be
// repeated. Credentials without an account are destroyed by the sweep (sweep-connecting.ts).
import { sql } from "kysely";
import type { CallOptions } from "#libs/rpc.ts";
import { endConnecting } from "./end-connecting.ts";
import type { Vault } from "./handler-group.ts";
import { deleteOauthApp } from "./oauth-apps.ts";
import { deleteOwnApp } from "./own-apps.ts";
import { deleteOwnClient } from "./own-oauth-clients.ts";
import type { AccountDatabase } from "./schema.ts";
import { abandonDeliveries } from "./webhook-deliveries.ts";
import { deleteEndpoint, keyOf } from "./webhook-endpoints.ts";

/** What ending takes. */
export interface Remaining {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "destroyOauthClient" | "destroyApp" | "destroyWebhookKey">;
}

const environments = [1, 2] as const;
const tables = ["oauth_apps", "own_oauth_clients", "own_apps", "webhook_endpoints"] as const;

/** Whether anything of a deleted project is left. */
export async function hasRemains(db: AccountDatabase, projectId: string): Promise<boolean> {
  const isOpen = sql`select from connections
    where project_id = ${projectId} and state in ('PENDING', 'AWAITING_VERIFICATION')`;
  const isLive = sql`select from account_reservations where project_id = ${projectId} and not doomed`;
  const rows = tables.map((table) => sql`select from ${sql.table(table)} where project_id = ${projectId}`);
  for (const query of [isOpen, isLive, ...rows]) {
    if ((await sql`${query} limit 1`.execute(db)).rows.length > 0) return true;
  }
  return false;
}

/** Ends everything that is left of a deleted project. */
export async function endRemains(
  { db, vault }: Remaining,
  projectId: string,
  { time, options }: { readonly time: Date; readonly options: CallOptions },
): Promise<void> {
  for (const environment of environments) {
    await endConnecting(db, { projectId, environment, externalUserId: "" }, time, "The project was deleted.");
  }
  await endWebhooks({ db, vault }, projectId, { time, options });
  const clients = await db
    .selectFrom("ownOauthClients")
    .select("oauthAppId")
    .where("projectId", "=", projectId)
    .execute();
  for (const { oauthAppId } of clients) {
    await vault.destroyOauthClient({ projectId, oauthAppId }, options);
    await deleteOwnClient(db, { projectId, oauthAppId });
  }
  const oauthApps = await db.selectFrom("oauthApps").select("id").where("projectId", "=", projectId).execute();
  for (const { id } of oauthApps) {
    await vault.destroyOauthClient({ projectId, oauthAppId: id }, options);
    await deleteOauthApp(db, { projectId, id });
  }
  const apps = await db.selectFrom("ownApps").select("slug").where("projectId", "=", projectId).execute();
  for (const { slug: appSlug } of apps) {
    await vault.destroyApp({ projectId, appSlug }, options);
    await deleteOwnApp(db, projectId, appSlug);
  }
}

async function endWebhooks(
  { db, vault }: Remaining,
  projectId: string,
  { time, options }: { readonly time: Date; readonly options: CallOptions },
): Promise<void> {
  const endpoints = await db.selectFrom("webhookEndpoints").selectAll().where("projectId", "=", projectId).execute();
  for (const endpoint of endpoints) {
    const { environment, id: webhookId, kind } = endpoint;
    if (kind === "WEBHOOK") await vault.destroyWebhookKey({ projectId, environment, webhookId }, options);
    await db.transaction().execute(async (tx) => {
      await deleteEndpoint(tx, keyOf(endpoint));
      await abandonDeliveries(tx, keyOf(endpoint), time);
    });
  }
}
