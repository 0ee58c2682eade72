// Events on their way to a receiver: signed, in order for each account, kept through failures. The receiver is a true https
// server and verifies with the package that receivers use.

import { expect, test } from "vitest";
import { EventDeliveryState } from "#proto/deputy/account/v1/events.ts";
import { deliverEvents } from "../../services/account/deliver-events.ts";
import { insertEvents, type NewEvent } from "../../services/account/events.ts";
import { readRetryAfter, retryTime } from "../../services/account/posting-times.ts";
import { expireDeliveries } from "../../services/account/webhook-deliveries.ts";
import { findWebhook, keyOf } from "../../services/account/webhook-endpoints.ts";
import { Webhook } from "../support/standard-webhooks.ts";
import { call, development, newConnectToken, newKeyAccount, newProject } from "./harness.ts";
import { accountOf, idOf, numberOf, webhookFixture } from "./webhook-fixture.ts";

const { receiver, account, options, newHook } = await webhookFixture();
const { api, operator, vault, db, clock, now } = account;

test("posts what a receiver verifies, in the form of Standard Webhooks", async () => {
  const hook = await newHook();
  await hook.make("apn_1", 1);
  await hook.deliver();
  const [posting, ...more] = hook.postings();
  if (posting === undefined) throw new Error("nothing came");
  expect(more).toEqual([]);
  const [event] = await hook.list();
  expect(new Webhook(hook.signingKey).verify(posting.body, posting.headers)).toEqual({
    type: "account.connected",
    timestamp: event?.createTime?.toISOString(),
    data: {
      project_id: hook.projectId,
      environment: "development",
      external_user_id: "ann",
      account_id: "apn_1",
      n: 1,
      connection_id: "con_apn_1",
    },
  });
  expect(idOf(posting)).toBe(event?.id);
  expect(posting.headers["content-type"]).toBe("application/json");
  expect(event?.delivery).toMatchObject({ state: EventDeliveryState.DELIVERED, attempts: 1, lastError: "" });
});

test("signs by the old and the new key after a change of the key", async () => {
  const hook = await newHook();
  const { signingKey } = await api.rotateWebhookKey({ environment: development }, call(hook.token));
  await hook.make("apn_1", 1);
  await hook.deliver();
  const [posting] = hook.postings();
  for (const key of [hook.signingKey, signingKey]) new Webhook(key).verify(posting?.body ?? "", posting?.headers ?? {});
});

test("holds back an account's later events until the earlier one is taken, and no other account's", async () => {
  const hook = await newHook();
  receiver.answerWith((posting) => (accountOf(posting) === "apn_bad" ? 500 : 200));
  await hook.make("apn_bad", 1, 2, 3);
  await hook.make("apn_good", 4, 5, 6);
  await hook.deliver();
  expect(hook.told().sort()).toEqual([1, 4, 5, 6]);
  const bad = (await hook.list()).find(({ data }) => data?.n === 1);
  expect(bad?.delivery).toMatchObject({
    state: EventDeliveryState.PENDING,
    attempts: 1,
    lastError: "The endpoint answered with status 500.",
  });
  receiver.answerWith(() => 200);
  await hook.deliver();
  expect(hook.told()).toHaveLength(4);
  clock.aheadMs += 10_000;
  await hook.deliver();
  expect(hook.told().slice(4)).toEqual([1, 2, 3]);
});

test("takes anything but a status from 200 to 299 for a failure, and follows no redirect", async () => {
  const hook = await newHook();
  const elsewhere = receiver.url("/elsewhere");
  for (const [answer, error] of [
    [{ status: 307, headers: { location: elsewhere } }, "status 307: redirects are not followed"],
    [{ status: 302, headers: { location: elsewhere } }, "status 302: redirects are not followed"],
    [404, "status 404"],
    [410, "status 410"],
    [503, "status 503"],
  ] as const) {
    receiver.answerWith(() => answer);
    await hook.make(`apn_${JSON.stringify(answer).length}_${error}`, 1);
    await hook.deliver();
    const [event] = await hook.list();
    expect(event?.delivery?.lastError).toContain(error);
  }
  expect(receiver.postings.some(({ path }) => path === "/elsewhere")).toBe(false);
});

test("does not post to an address that has become one that it may not dial", async () => {
  const hook = await newHook();
  await db
    .updateTable("webhookEndpoints")
    .set({ url: "https://localhost:1/hook" })
    .where("id", "=", hook.key.endpointId)
    .execute();
  await hook.make("apn_1", 1);
  await hook.deliver();
  expect((await hook.list())[0]?.delivery).toMatchObject({
    attempts: 1,
    lastError: "The host is a name without a dot, which is local to a network.",
  });
});

test("counts no attempt and opens no breaker while the vault is away", async () => {
  const hook = await newHook();
  for (let n = 0; n < 10; n++) vault.failNext("signWebhook");
  for (let n = 0; n < 12; n++) await hook.make(`apn_${n}`, n);
  await hook.deliver();
  expect(hook.told()).toEqual([]);
  expect((await hook.list())[0]?.delivery).toMatchObject({ state: EventDeliveryState.PENDING, attempts: 0 });
  expect((await findWebhook(db, hook.key))?.openUntil).toBeNull();
  clock.aheadMs += 6_000;
  await hook.deliver();
  expect(hook.told()).toHaveLength(12);
});

test("tries for a day, at growing distances, and then gives up and goes on with the next", async () => {
  const hook = await newHook();
  receiver.answerWith((posting) => (numberOf(posting) === 1 ? 500 : 200));
  await hook.make("apn_1", 1, 2);
  const startMs = now();
  const times: number[] = [];
  for (let looks = 0; looks < 60 && !hook.told().includes(2); looks++) {
    await hook.deliver();
    times.push((now() - startMs) / 1000);
    const lane = await db
      .selectFrom("webhookLanes")
      .selectAll()
      .where("endpointId", "=", hook.key.endpointId)
      .execute();
    if (lane[0]) clock.aheadMs += Math.max(0, lane[0].dueTime.getTime() - now()) + 1;
  }
  const tries = hook.told().filter((n) => n === 1).length;
  expect(tries).toBeGreaterThanOrEqual(12);
  expect(tries).toBeLessThanOrEqual(15);
  expect(times.at(-1)).toBeGreaterThan(24 * 3600 - 1);
  expect(times.at(-1)).toBeLessThan(24 * 3600 + 60);
  const events = await hook.list();
  expect(events.find(({ data }) => data?.n === 1)?.delivery).toMatchObject({
    state: EventDeliveryState.FAILED,
    attempts: tries,
    lastError: "The endpoint answered with status 500.",
  });
  expect(events.find(({ data }) => data?.n === 2)?.delivery?.state).toBe(EventDeliveryState.DELIVERED);
});

test("spreads retries, and tries once more when the time is over", () => {
  const time = new Date(0);
  const end = new Date(86_400_000);
  const seconds = (attempts: number, random: number, retryAfterSeconds = 0) =>
    retryTime({ attempts, retryAfterSeconds }, end, time, () => random).getTime() / 1000;
  expect([1, 2, 3, 4, 5, 6, 7, 8, 9, 50].map((attempts) => seconds(attempts, 0.5))).toEqual([
    5, 30, 120, 600, 1_800, 3_600, 7_200, 10_800, 14_400, 14_400,
  ]);
  expect([seconds(4, 0), seconds(4, 1)]).toEqual([480, 720]);
  const late = { attempts: 9, retryAfterSeconds: 0 };
  expect(retryTime(late, new Date(1000), time, () => 0.5)).toEqual(new Date(1000));
  // What the receiver asks for, never sooner than by itself, and four hours at most.
  expect([seconds(1, 0.5, 90), seconds(3, 0.5, 90), seconds(1, 0.5, 1e12)]).toEqual([90, 120, 14_400]);
});

test.each([
  [undefined, 0],
  ["120", 120],
  ["Sat, 28 Nov 2026 03:02:00 GMT", 120],
  ["Sat, 28 Nov 2026 02:58:00 GMT", 0],
  ["-5", 0],
  ["soon", 0],
])("reads Retry-After: %s", (value, seconds) => {
  expect(readRetryAfter(value, Date.parse("2026-11-28T03:00:00Z"))).toBe(seconds);
});

test("comes again when the receiver says so", async () => {
  const hook = await newHook();
  receiver.answerWith(() => ({ status: 429, headers: { "retry-after": "900" } }));
  await hook.make("apn_1", 1);
  await hook.deliver();
  receiver.answerWith(() => 200);
  clock.aheadMs += 800_000;
  await hook.deliver();
  expect(hook.told()).toEqual([1]);
  clock.aheadMs += 110_000;
  await hook.deliver();
  expect(hook.told()).toEqual([1, 1]);
});

test("sends no more than a probe to an endpoint that is down, and all of it when it is back", async () => {
  const hook = await newHook();
  receiver.answerWith(() => 503);
  for (let n = 0; n < 40; n++) await hook.make(`apn_${n}`, n);
  await hook.deliver();
  const first = hook.told().length;
  expect(first).toBeGreaterThanOrEqual(5);
  expect(first).toBeLessThanOrEqual(15);
  await hook.deliver();
  await hook.make("apn_late", 40);
  await hook.deliver();
  expect(hook.told()).toHaveLength(first);
  // Hours of it cost a probe at a time.
  let probes = 0;
  for (let hour = 0; hour < 4; hour += 0.25) {
    clock.aheadMs += 15 * 60_000 * 1.25;
    await Promise.all([hook.deliver(), hook.deliver(), hook.deliver()]);
    probes += 1;
    expect(hook.told()).toHaveLength(first + probes);
  }
  receiver.answerWith(() => 200);
  clock.aheadMs += 20 * 60_000;
  await hook.deliver();
  await hook.deliver();
  const delivered = (await hook.list()).filter(({ delivery }) => delivery?.state === EventDeliveryState.DELIVERED);
  expect(delivered).toHaveLength(41);
}, 90_000);

test("does not take an endpoint for down because of one account", async () => {
  const hook = await newHook();
  receiver.answerWith((posting) => (accountOf(posting) === "apn_bad" ? 500 : 200));
  await hook.make("apn_bad", 1);
  for (let n = 0; n < 10; n++) {
    await hook.deliver();
    clock.aheadMs += 6 * 3_600_000 * 0.2;
  }
  expect((await findWebhook(db, hook.key))?.openUntil).toBeNull();
  await hook.make("apn_good", 2);
  await hook.deliver();
  expect(hook.told()).toContain(2);
});

test("gives up what has waited a day behind a breaker, but not what nobody could try", async () => {
  const hook = await newHook();
  await hook.make("apn_waiting", 99);
  clock.aheadMs += 25 * 3_600_000;
  await expireDeliveries(db, new Date(now()));
  expect((await hook.list())[0]?.delivery?.state).toBe(EventDeliveryState.PENDING);
  clock.aheadMs = 0;
  receiver.answerWith(() => 503);
  for (let n = 0; n < 20; n++) await hook.make(`apn_${n}`, n);
  await hook.deliver();
  clock.aheadMs += 25 * 3_600_000;
  await hook.deliver();
  await expireDeliveries(db, new Date(now()));
  const states = new Set((await hook.list()).map(({ delivery }) => delivery?.state));
  expect([...states]).toEqual([EventDeliveryState.FAILED]);
  receiver.answerWith(() => 200);
  const failed = hook.told().length;
  const { replayedCount } = await operator.replayEvents(
    { ...hook.scope, startTime: new Date(0), endTime: new Date(now()), failedOnly: true },
    call(),
  );
  expect(replayedCount).toBe(21);
  clock.aheadMs += 20 * 60_000;
  await hook.deliver();
  await hook.deliver();
  expect(new Set(hook.told().slice(failed)).size).toBe(21);
});

test("replays by the same id, behind what is waiting", async () => {
  const hook = await newHook();
  await hook.make("apn_1", 1, 2);
  await hook.deliver();
  const events = await hook.list();
  const [first, second] = [1, 2].map((n) => events.find(({ data }) => data?.n === n));
  await api.replayEvents({ environment: development, eventIds: [first?.id ?? ""] }, call(hook.token));
  await hook.make("apn_1", 3);
  await hook.deliver();
  expect(hook.told()).toEqual([1, 2, 1, 3]);
  expect(hook.postings().map(idOf).slice(0, 3)).toEqual([first?.id, second?.id, first?.id]);
});

test("gives up a posting that takes too long", async () => {
  const hook = await newHook();
  receiver.answerWith(() => "silence");
  await hook.make("apn_1", 1);
  const startMs = performance.now();
  await hook.deliver();
  expect(performance.now() - startMs).toBeGreaterThan(14_000);
  expect(performance.now() - startMs).toBeLessThan(20_000);
  expect((await hook.list())[0]?.delivery?.lastError).toContain("15000 ms");
}, 30_000);

test("sends the outcome of a connection to the connect token's address, in the form that receivers know", async () => {
  const project = await newProject(account);
  const { projectId, token } = project;
  await newConnectToken(account, token);
  const { id: accountId } = await newKeyAccount(account, token);
  const webhookUri = receiver.url("/connected");
  const whose = { projectId, environment: development as 1, externalUserId: "ann", accountId };
  const send = (...events: NewEvent[]) =>
    db.transaction().execute((tx) => insertEvents(tx, new Date(now()), ...events));
  await send({ ...whose, type: "account.connected", data: { connectionId: "con_1", webhookUri } });
  const endpoint = await db.selectFrom("webhookEndpoints").selectAll().where("projectId", "=", projectId).execute();
  const deliver = () => deliverEvents(options, keyOf(endpoint[0] as never), now, new AbortController().signal);
  await deliver();
  const postings = () => receiver.postings.filter(({ path }) => path === "/connected");
  expect(postings()).toHaveLength(1);
  expect(postings()[0]?.headers["webhook-signature"]).toBeUndefined();
  const body = JSON.parse(postings()[0]?.body ?? "");
  expect(body).toMatchObject({
    event: "CONNECTION_SUCCESS",
    connect_token: null,
    environment: "development",
    account: {
      ...{ id: accountId, external_id: "ann", healthy: true, dead: false },
      app: { name_slug: "sandbox_header_key", auth_type: "keys", connect: { proxy_enabled: true } },
    },
  });
  expect(Number.isSafeInteger(body.connect_session_id)).toBe(true);
  expect(postings()[0]?.body).not.toContain("sandbox-key-0123");

  const { signingKey } = await api.setWebhook({ environment: development, url: receiver.url("/own") }, call(token));
  const data = { connectionId: "con_2", webhookUri, error: "The user said no." };
  await send({ ...whose, accountId: "", type: "connection.failed", data });
  await deliver();
  const failed = postings()[1];
  expect(new Webhook(signingKey).verify(failed?.body ?? "", failed?.headers ?? {})).toMatchObject({
    event: "CONNECTION_ERROR",
    error: "The user said no.",
  });
  const { events } = await api.listEvents({ environment: development }, call(token));
  expect(events[0]?.connectionDelivery?.state).toBe(EventDeliveryState.DELIVERED);
  expect(events[0]?.delivery?.state).toBe(EventDeliveryState.PENDING);
});
