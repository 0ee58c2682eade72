// SetWebhook, GetWebhook, DeleteWebhook, RotateWebhookKey, ListEvents and ReplayEvents: what is kept, what is refused, and that
// the key is in nobody's hands but the vault's and the caller's.
import { expect, test } from "vitest";
import { EventDeliveryState } from "#proto/deputy/account/v1/events.ts";
import { insertEvents, type NewEvent } from "../../services/account/events.ts";
import { dumpDatabase } from "../support/postgres.ts";
import { call, development, newProject, production, startAccount } from "./harness.ts";

const account = await startAccount(undefined, [], { exemptTargets: ["localhost:9443"] });
const { api, operator, vault, db } = account;
const url = "https://hooks.acme.com/deputy";

async function newHook(environment: 1 | 2 = development) {
  const project = await newProject(account);
  const { webhook, signingKey } = await api.setWebhook({ environment, url }, call(project.token));
  return { ...project, webhook, signingKey };
}

const reasonOf = (promise: Promise<unknown>) =>
  promise.then(
    () => "",
    ({ reason, message }) => `${reason} ${message}`,
  );

function event(projectId: string, more: Partial<NewEvent> = {}): NewEvent {
  return {
    ...{ projectId, environment: development, externalUserId: "ann", accountId: "apn_1" },
    ...{ type: "account.connected", data: { app: "slack", connectionId: "con_1" } },
    ...more,
  };
}

const insert = (...events: NewEvent[]) =>
  db.transaction().execute((transaction) => insertEvents(transaction, new Date(), ...events));

/** What was done to a project's webhooks. */
const actionsOn = (projectId: string) =>
  db
    .selectFrom("auditEntries")
    .select(["action", "resourceId", "before", "after", "actor"])
    .where("projectId", "=", projectId)
    .where("action", "not in", ["CreateProject", "CreateApiClient"])
    .orderBy("createTime")
    .execute();

test("sets a webhook, shows its key once, and changes its address without a new key", async () => {
  const { token, projectId, clientId, webhook, signingKey } = await newHook();
  expect(webhook).toMatchObject({ id: expect.stringMatching(/^whk_\w{22}$/), url });
  expect(signingKey).toMatch(/^whsec_/);
  const other = "https://other.acme.com/deputy";
  const changed = await api.setWebhook({ environment: development, url: other }, call(token));
  expect(changed).toMatchObject({ webhook: { id: webhook?.id, url: other }, signingKey: "" });
  const found = await api.getWebhook({ environment: development }, call(token));
  expect(found.webhook).toMatchObject({ id: webhook?.id, url: other, createTime: webhook?.createTime });
  expect(
    vault
      .callsOf("createWebhookKey")
      .filter(({ request }) => "projectId" in request && request.projectId === projectId),
  ).toHaveLength(1);
  expect(await actionsOn(projectId)).toMatchObject([
    { action: "SetWebhook", resourceId: webhook?.id, before: null, after: { url }, actor: clientId },
    { action: "SetWebhook", before: { url }, after: { url: other } },
  ]);
});

test("keeps the key out of its database and its log", async () => {
  const { signingKey } = await newHook();
  expect(await dumpDatabase(account.database.superuser)).not.toContain(signingKey.slice(6));
  expect(account.lines.join("\n")).not.toContain(signingKey.slice(6));
});

test("tells environments and projects apart", async () => {
  const acme = await newHook(development);
  const other = await newProject(account);
  expect((await api.getWebhook({ environment: production }, call(acme.token))).webhook).toBeUndefined();
  expect((await api.getWebhook({ environment: development }, call(other.token))).webhook).toBeUndefined();
  const rotated = api.rotateWebhookKey({ environment: development }, call(other.token));
  expect(await reasonOf(rotated)).toBe("WEBHOOK_NOT_FOUND No such webhook.");
  await api.deleteWebhook({ environment: development }, call(other.token));
  expect((await api.getWebhook({ environment: development }, call(acme.token))).webhook?.id).toBe(acme.webhook?.id);
});

test("refuses addresses that it would not post to", async () => {
  const { token } = await newProject(account);
  const set = (given: string) => reasonOf(api.setWebhook({ environment: development, url: given }, call(token)));
  for (const given of [
    "http://hooks.acme.com/",
    "https://localhost/",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://169.254.169.254/latest",
    "https://hooks.acme.com:22/",
    "https://user:password@hooks.acme.com/",
    "https://hooks.internal/",
    "https://hooks.acme.com/#fragment",
  ]) {
    expect(await set(given), given).toMatch(/^INVALID_FIELD url: /);
  }
  // Named by the operator, for development.
  expect(await set("https://localhost:9443/hook")).toBe("");
});

test("makes another key on demand, and says so in the audit without the key", async () => {
  const { token, projectId, webhook, signingKey } = await newHook();
  const rotated = await api.rotateWebhookKey({ environment: development }, call(token));
  expect(rotated.webhook?.id).toBe(webhook?.id);
  expect(rotated.signingKey).toMatch(/^whsec_/);
  expect(rotated.signingKey).not.toBe(signingKey);
  expect((await actionsOn(projectId)).at(-1)).toMatchObject({ action: "RotateWebhookKey", resourceId: webhook?.id });
});

test("deletes the webhook with its key; a new one has another id", async () => {
  const { token, projectId, webhook } = await newHook();
  await insert(event(projectId));
  await api.deleteWebhook({ environment: development }, call(token));
  await api.deleteWebhook({ environment: development }, call(token));
  expect(vault.webhookKeys.has(webhook?.id ?? "")).toBe(false);
  const { events } = await api.listEvents({ environment: development }, call(token));
  expect(events[0]?.delivery).toMatchObject({
    state: EventDeliveryState.FAILED,
    lastError: "The webhook was deleted.",
  });
  const next = await api.setWebhook({ environment: development, url }, call(token));
  expect(next.webhook?.id).not.toBe(webhook?.id);
  expect((await actionsOn(projectId)).map(({ action }) => action)).toEqual([
    "SetWebhook",
    "DeleteWebhook",
    "SetWebhook",
  ]);
});

test("leaves one webhook with its key when several calls make one at the same time", async () => {
  const { token, projectId } = await newProject(account);
  const set = () => api.setWebhook({ environment: development, url }, call(token));
  const results = await Promise.allSettled([set(), set(), set()]);
  expect(results.filter(({ status }) => status === "fulfilled").length).toBeGreaterThan(0);
  for (const result of results) {
    if (result.status === "rejected") expect(result.reason).toMatchObject({ reason: "CONCURRENT_CHANGE" });
  }
  const { webhook } = await api.getWebhook({ environment: development }, call(token));
  const made = vault
    .callsOf("createWebhookKey")
    .filter(({ request }) => (request as { projectId: string }).projectId === projectId);
  const left = made.filter(({ request }) => vault.webhookKeys.has((request as { webhookId: string }).webhookId));
  expect(left.map(({ request }) => (request as { webhookId: string }).webhookId)).toEqual([webhook?.id]);
});

test("makes no webhook when the vault makes no key", async () => {
  const { token } = await newProject(account);
  vault.failNext("createWebhookKey");
  expect(await reasonOf(api.setWebhook({ environment: development, url }, call(token)))).toMatch(/^DOWN/);
  expect((await api.getWebhook({ environment: development }, call(token))).webhook).toBeUndefined();
});

test("lists events newest first, in pages, by account and kind", async () => {
  const { token, projectId } = await newProject(account);
  for (let n = 0; n < 5; n++) {
    const type = n % 2 === 0 ? ("account.connected" as const) : ("account.dead" as const);
    await insert(event(projectId, { accountId: `apn_${n}`, type }));
  }
  await insert(event(projectId, { environment: production, accountId: "apn_production" }));
  const ids: string[] = [];
  let pageToken = "";
  do {
    const page = await api.listEvents({ environment: development, pageSize: 2, pageToken }, call(token));
    ids.push(...page.events.map(({ accountId }) => accountId));
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  expect(ids).toEqual(["apn_4", "apn_3", "apn_2", "apn_1", "apn_0"]);
  const dead = await api.listEvents({ environment: development, type: "account.dead" }, call(token));
  expect(dead.events.map(({ accountId }) => accountId)).toEqual(["apn_3", "apn_1"]);
  const one = await api.listEvents({ environment: development, accountId: "apn_2" }, call(token));
  expect(one.events).toMatchObject([
    {
      type: "account.connected",
      externalUserId: "ann",
      data: { app: "slack", connection_id: "con_1" },
      delivery: undefined,
    },
  ]);
  const other = await newProject(account);
  expect((await api.listEvents({ environment: development }, call(other.token))).events).toEqual([]);
});

test("keeps an event's address for itself", async () => {
  const { token, projectId } = await newProject(account);
  const webhookUri = "https://hooks.acme.com/connected?key=canary";
  await insert(event(projectId, { data: { connectionId: "con_9", webhookUri } }));
  const { events } = await api.listEvents({ environment: development }, call(token));
  expect(events[0]?.data).toEqual({ connection_id: "con_9" });
  expect(events[0]?.connectionDelivery?.state).toBe(EventDeliveryState.PENDING);
});

test("replays what is named, or a time, and leaves what is waiting as it is", async () => {
  const { token, projectId } = await newHook();
  await insert(event(projectId), event(projectId, { accountId: "apn_2" }), event(projectId, { accountId: "apn_3" }));
  const { events } = await api.listEvents({ environment: development }, call(token));
  const replay = (more: object) => api.replayEvents({ environment: development, ...more }, call(token));
  const [first = "", second = ""] = events.map(({ id }) => id);
  expect((await replay({ eventIds: [first] })).replayedCount).toBe(0);
  await db
    .updateTable("webhookDeliveries")
    .set({ state: "DELIVERED", completeTime: new Date() })
    .where("projectId", "=", projectId)
    .execute();
  await db.updateTable("webhookDeliveries").set({ state: "FAILED" }).where("eventId", "=", second).execute();
  const startTime = new Date(Date.now() - 60_000);
  expect((await replay({ startTime, failedOnly: true })).replayedCount).toBe(1);
  expect((await replay({ startTime })).replayedCount).toBe(2);
  expect((await replay({ startTime, endTime: startTime })).replayedCount).toBe(0);
  const other = await newHook();
  const foreign = api.replayEvents({ environment: development, eventIds: [first] }, call(other.token));
  expect((await foreign).replayedCount).toBe(0);
  expect((await actionsOn(projectId)).at(-1)).toMatchObject({ action: "ReplayEvents", after: { count: 0 } });
});

test("refuses a replay of nothing in particular, or without a webhook", async () => {
  const { token } = await newHook();
  const replay = (more: object) => reasonOf(api.replayEvents({ environment: development, ...more }, call(token)));
  expect(await replay({})).toMatch(/^INVALID_FIELD start_time: /);
  expect(await replay({ eventIds: ["evt_1"], startTime: new Date() })).toMatch(/^INVALID_FIELD event_ids: /);
  const bare = await newProject(account);
  const missing = api.replayEvents({ environment: development, eventIds: ["evt_1"] }, call(bare.token));
  expect(await reasonOf(missing)).toMatch(/^WEBHOOK_NOT_FOUND/);
});

test("asks for the scopes of projects", async () => {
  const reader = await newProject(account, ["connect:projects:read"]);
  await api.getWebhook({ environment: development }, call(reader.token));
  await api.listEvents({ environment: development }, call(reader.token));
  for (const refused of [
    api.setWebhook({ environment: development, url }, call(reader.token)),
    api.rotateWebhookKey({ environment: development }, call(reader.token)),
    api.deleteWebhook({ environment: development }, call(reader.token)),
    api.replayEvents({ environment: development, eventIds: ["evt_1"] }, call(reader.token)),
  ]) {
    expect(await reasonOf(refused)).toMatch(/^SCOPE_MISSING/);
  }
  const nobody = { projectId: "proj_absent", environment: development, url } as const;
  expect(await reasonOf(operator.setWebhook(nobody, call()))).toMatch(/^PROJECT_NOT_FOUND/);
});
