// The table of webhook keys: what a project's deliveries are signed with, made here, shown once and sealed. The account service
// sends the deliveries and has them signed, so that a dump of its database, or the service itself taken over, gives no key away.
// While a key is being replaced the one before it signs as well: a receiver takes either, and changes without downtime.
import { createHmac, randomBytes } from "node:crypto";
import { sql } from "kysely";
import { notFound, StatusError } from "#libs/errors.ts";
import { type Actor, insertAuditEntries } from "./audit-entries.ts";
import type { EnvironmentName, VaultDatabase } from "./schema.ts";
import { type SecretOwner, type Secrets, sealWith, wiped } from "./secrets.ts";

/** Names the key of one webhook. */
export interface WebhookKeyName {
  readonly projectId: string;
  readonly environment: EnvironmentName;
  readonly webhookId: string;
}

/** What is sealed: the key as its receiver knows it, and the one before it. */
interface WebhookKeys {
  readonly key: string;
  readonly previous?: { readonly key: string; readonly expireTime: string };
}

interface Access {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
}

const prefix = "whsec_";
const previousLifetimeMs = 24 * 3_600_000;

/** Makes a key, the first one or another in the place of the one before. Gives it: it is never shown again. */
export async function createWebhookKey(
  { db, secrets }: Access,
  name: WebhookKeyName,
  { actor, nowMs }: { readonly actor: Actor; readonly nowMs: number },
): Promise<string> {
  const owner = ownerOf(name);
  const dataKey = await secrets.prepare(owner);
  const key = prefix + randomBytes(32).toString("base64");
  await db.transaction().execute(async (transaction) => {
    const existing = await select(transaction, name).forUpdate().executeTakeFirst();
    const before = existing?.blob ? await secrets.open<WebhookKeys>(owner, existing) : undefined;
    const expireTime = new Date(nowMs + previousLifetimeMs).toISOString();
    const keys: WebhookKeys = { key, ...(before && { previous: { key: before.key, expireTime } }) };
    const generation = (existing?.generation ?? 0n) + 1n;
    const columns = {
      ...{ generation, ...sealWith(dataKey, owner, generation, keys) },
      ...{ destroyTime: null, updateTime: sql<Date>`now()` },
    };
    const { numInsertedOrUpdatedRows } = await transaction
      .insertInto("webhookKeys")
      .values({ ...name, ...columns })
      .onConflict((conflict) =>
        conflict
          .columns(["projectId", "webhookId"])
          .doUpdateSet(columns)
          .where("webhookKeys.environment", "=", name.environment)
          .where("webhookKeys.generation", "=", generation - 1n),
      )
      .executeTakeFirst();
    // Of two first writes at once the second carries a generation that is taken.
    if (numInsertedOrUpdatedRows !== 1n) throw new StatusError("ABORTED", "CONCURRENT_CHANGE", "Changed meanwhile.");
    await insertAuditEntries(transaction, { action: "webhook_key.created", actor, ...auditedAs(name) });
  });
  return key;
}

/** The signature header of one message, by the key and, for a day, by the one before it. NOT_FOUND without a key. */
export async function signWebhook(
  { db, secrets }: Access,
  name: WebhookKeyName,
  message: { readonly id: string; readonly timestamp: bigint; readonly body: Uint8Array; readonly nowMs: number },
): Promise<string> {
  const row = await select(db, name).executeTakeFirst();
  if (row === undefined || row.blob === null) throw notFound("webhook key");
  const { key, previous } = await secrets.open<WebhookKeys>(ownerOf(name), row);
  const keys = [key, ...(previous && Date.parse(previous.expireTime) > message.nowMs ? [previous.key] : [])];
  return keys.map((one) => signatureOf(one, message)).join(" ");
}

/** Wipes a webhook's keys. A repeat, or a webhook without one, changes nothing. */
export async function destroyWebhookKey(db: VaultDatabase, name: WebhookKeyName, actor: Actor): Promise<void> {
  await db.transaction().execute(async (transaction) => {
    const { numUpdatedRows } = await transaction
      .updateTable("webhookKeys")
      .set({ ...wiped, destroyTime: sql<Date>`now()`, updateTime: sql<Date>`now()` })
      .where("projectId", "=", name.projectId)
      .where("webhookId", "=", name.webhookId)
      .where("environment", "=", name.environment)
      .where("destroyTime", "is", null)
      .executeTakeFirst();
    if (numUpdatedRows === 0n) return;
    await insertAuditEntries(transaction, { action: "webhook_key.destroyed", actor, ...auditedAs(name) });
  });
}

function signatureOf(
  key: string,
  { id, timestamp, body }: { readonly id: string; readonly timestamp: bigint; readonly body: Uint8Array },
): string {
  const hmac = createHmac("sha256", Buffer.from(key.slice(prefix.length), "base64"));
  return `v1,${hmac.update(`${id}.${timestamp}.`).update(body).digest("base64")}`;
}

function ownerOf({ projectId, environment, webhookId }: WebhookKeyName): SecretOwner {
  return { purpose: "webhook-key", projectId, environment, externalUserId: "", id: webhookId, appSlug: "" };
}

function auditedAs({ projectId, environment, webhookId }: WebhookKeyName) {
  return { projectId, environment, accountId: webhookId };
}

function select(db: VaultDatabase, { projectId, environment, webhookId }: WebhookKeyName) {
  return db
    .selectFrom("webhookKeys")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("webhookId", "=", webhookId)
    .where("environment", "=", environment);
}
