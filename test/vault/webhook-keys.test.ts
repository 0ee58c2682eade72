// Webhook keys over the true service: made and shown once, sealed, good for what receivers verify with, replaced without a gap.

import { expect, test } from "vitest";
import type { StatusError } from "#libs/errors.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { dumpDatabase } from "../support/postgres.ts";
import { Webhook } from "../support/standard-webhooks.ts";
import { soon, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { asAccount, asProxy } = vault;

const named = (webhookId: string) => ({ projectId: "proj_1", environment: Environment.DEVELOPMENT, webhookId });
const body = Buffer.from('{"type":"account.connected","data":{"name":"Ä"}}');

async function create(webhookId: string): Promise<string> {
  return (await asAccount.createWebhookKey(named(webhookId), soon())).signingKey;
}

async function sign(webhookId: string, more = {}) {
  const timestamp = BigInt(Math.floor(Date.now() / 1000));
  const request = { ...named(webhookId), messageId: "evt_1", timestamp, body, ...more };
  const { signature } = await asAccount.signWebhook(request, soon());
  return { "webhook-id": "evt_1", "webhook-timestamp": String(timestamp), "webhook-signature": signature };
}

const reasonOf = (call: Promise<unknown>) =>
  call.then(
    () => "",
    (error: StatusError) => error.reason,
  );

test("makes a key that a receiver verifies with", async () => {
  const key = await create("whk_1");
  expect(key).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
  const headers = await sign("whk_1");
  expect(new Webhook(key).verify(body, headers)).toMatchObject({ type: "account.connected" });
  expect(() => new Webhook(key).verify(body, { ...headers, "webhook-id": "evt_2" })).toThrow();
  expect(() => new Webhook(key).verify(`${body} `, headers)).toThrow();
});

test("signs by both keys for a day after a change, and then by the new one alone", async () => {
  const first = await create("whk_2");
  const second = await create("whk_2");
  const headers = await sign("whk_2");
  expect(headers["webhook-signature"].split(" ")).toHaveLength(2);
  new Webhook(first).verify(body, headers);
  new Webhook(second).verify(body, headers);
  const third = await create("whk_2");
  const later = await sign("whk_2");
  expect(() => new Webhook(first).verify(body, later)).toThrow();
  new Webhook(second).verify(body, later);
  new Webhook(third).verify(body, later);
});

test("keeps the key sealed, and has it rewrapped with the rest", async () => {
  const key = await create("whk_3");
  const dump = await dumpDatabase(vault.database.superuser);
  const bytes = Buffer.from(key.slice("whsec_".length), "base64");
  expect(dump).not.toContain(key.slice(10));
  expect(dump).not.toContain(bytes.toString("hex"));
  const status = await (await vault.vault.as("operator")).getVaultStatus({}, soon());
  const rows = await vault.db.selectFrom("webhookKeys").select("kekId").where("blob", "is not", null).execute();
  const others = await vault.db.selectFrom("oauthClients").select("kekId").where("blob", "is not", null).execute();
  expect(Number(Object.values(status.dataKeysByKek)[0])).toBe(rows.length + others.length);
});

test("knows a key by its project, environment and webhook alone", async () => {
  await create("whk_4");
  expect(await reasonOf(sign("whk_4", { projectId: "proj_2" }))).toBe("WEBHOOK_KEY_NOT_FOUND");
  expect(await reasonOf(sign("whk_4", { environment: Environment.PRODUCTION }))).toBe("WEBHOOK_KEY_NOT_FOUND");
  expect(await reasonOf(sign("whk_unknown"))).toBe("WEBHOOK_KEY_NOT_FOUND");
  const foreign = { ...named("whk_4"), environment: Environment.PRODUCTION };
  expect(await reasonOf(asAccount.createWebhookKey(foreign, soon()))).toBe("CONCURRENT_CHANGE");
  await asAccount.destroyWebhookKey(foreign, soon());
  await sign("whk_4");
});

test("destroys a key for good, and a key made afterwards has nothing of the one before", async () => {
  await create("whk_5");
  await asAccount.destroyWebhookKey(named("whk_5"), soon());
  await asAccount.destroyWebhookKey(named("whk_5"), soon());
  expect(await reasonOf(sign("whk_5"))).toBe("WEBHOOK_KEY_NOT_FOUND");
  await create("whk_5");
  expect((await sign("whk_5"))["webhook-signature"].split(" ")).toHaveLength(1);
});

test("audits who made and destroyed a key", async () => {
  await create("whk_6");
  await asAccount.destroyWebhookKey(named("whk_6"), soon());
  const entries = await vault.db
    .selectFrom("auditEntries")
    .select(["action", "service", "environment"])
    .where("accountId", "=", "whk_6")
    .orderBy("id")
    .execute();
  expect(entries).toEqual(
    ["webhook_key.created", "webhook_key.destroyed"].map((action) => ({
      action,
      service: "account",
      environment: "development",
    })),
  );
});

test("refuses everybody but the account service, and a message id that would blur the signed text", async () => {
  expect(await reasonOf(asProxy.createWebhookKey(named("whk_7"), soon()))).toBe("CALLER_NOT_ALLOWED");
  await create("whk_7");
  expect(await reasonOf(sign("whk_7", { messageId: "evt.1" }))).toBe("INVALID_FIELD");
});
