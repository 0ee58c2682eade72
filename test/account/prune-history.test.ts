// What is old is deleted, in batches, and nothing that is still needed.
import { expect, test } from "vitest";
import { insertEvents } from "../../services/account/events.ts";
import { pruneHistory } from "../../services/account/prune-history.ts";
import { call, development, keyFields, newConnectToken, newKeyAccount } from "./harness.ts";
import { webhookFixture } from "./webhook-fixture.ts";

const { account, receiver, newHook } = await webhookFixture();
const { api, db, owner, clock, now } = account;
const dayMs = 86_400_000;
const prune = () => pruneHistory(db, new Date(now() - 30 * dayMs), new AbortController().signal);
const count = async (table: string, projectId: string) =>
  (await owner.query<{ count: number }>(`select count(*)::int from ${table} where project_id = $1`, [projectId]))[0]
    ?.count;

test("deletes events and postings after their time, but none that is still to be posted", async () => {
  const hook = await newHook();
  const before = (await hook.list()).length;
  receiver.answerWith(({ body }) => (body.includes("apn_waiting") ? 500 : 200));
  await hook.make("apn_1", 1, 2);
  await hook.make("apn_waiting", 3);
  await hook.deliver();
  clock.aheadMs = 29 * dayMs;
  await prune();
  expect(await hook.list()).toHaveLength(before + 3);
  await hook.make("apn_2", 4);
  clock.aheadMs = 31 * dayMs;
  await prune();
  const left = (await hook.list()).map(({ data }) => data?.n);
  expect(left.sort()).toEqual([3, 4]);
  expect(await count("webhook_deliveries", hook.projectId)).toBe(2);
});

test("deletes more than a batch", async () => {
  const hook = await newHook();
  const whose = { projectId: hook.projectId, environment: development as 1, externalUserId: "ann", accountId: "" };
  const events = Array.from({ length: 2_500 }, () => ({ ...whose, type: "account.dead" as const, data: {} }));
  await api.deleteWebhook({ environment: development }, call(hook.token));
  await db.transaction().execute((tx) => insertEvents(tx, new Date(now()), ...events));
  clock.aheadMs = 31 * dayMs;
  await prune();
  expect(await count("events", hook.projectId)).toBe(0);
});

test("deletes connect tokens and connections that ended long ago, and keeps accounts and the audit", async () => {
  const hook = await newHook();
  const { projectId } = hook;
  const asked = { externalUserId: "ann", requireVerification: true, successRedirectUri: "https://acme.example/done" };
  const token = await newConnectToken(account, hook.token, asked);
  const request = { environment: development as 1, externalUserId: "ann", appSlug: "sandbox_header_key" };
  await api.createAccount({ ...request, credential: keyFields }, call(token));
  const ends = await newConnectToken(account, hook.token, { externalUserId: "ann" });
  await newKeyAccount(account, ends);
  const audit = await count("audit_entries", projectId);
  const accounts = await count("accounts", projectId);
  const [tokens, connections] = [await count("connect_tokens", projectId), await count("connections", projectId)];
  expect(tokens).toBe(2);
  expect(connections).toBe(1);
  clock.aheadMs = 32 * dayMs;
  await prune();
  // The connection was never verified, nor has anybody noted its end: it is not over.
  expect([await count("connect_tokens", projectId), await count("connections", projectId)]).toEqual([1, 1]);
  const ended = { state: "FAILED", error: "It was not verified." } as const;
  await db.updateTable("connections").set(ended).where("projectId", "=", projectId).execute();
  await prune();
  expect([await count("connect_tokens", projectId), await count("connections", projectId)]).toEqual([0, 0]);
  expect([await count("accounts", projectId), await count("audit_entries", projectId)]).toEqual([accounts, audit]);
});
