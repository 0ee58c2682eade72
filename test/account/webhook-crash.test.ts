// Postings by the queue: at once, again after a failure, and through processes that are killed at any point.
import { setTimeout as sleep } from "node:timers/promises";

import { expect, test } from "vitest";
import { startJobs } from "../../services/account/jobs.ts";
import { accountProcesses } from "../support/account-process.ts";
import { Webhook } from "../support/standard-webhooks.ts";
import { until } from "../vault/vault-fixture.ts";
import { accountOf, idOf, numberOf, webhookFixture } from "./webhook-fixture.ts";

const { receiver, account, options, newHook } = await webhookFixture();
const { vault, db, now } = account;
const access = { ...account.database.runtime, applicationName: "jobs-test", statementTimeoutMs: 10_000 };

test("is called by the queue as soon as an event is there, and again when one has failed", async () => {
  const hook = await newHook();
  const jobs = await startJobs(options, access, now);
  try {
    let isDown = true;
    receiver.answerWith(() => (isDown ? 500 : 200));
    await hook.make("apn_1", 1);
    await until(() => hook.told().length === 1);
    isDown = false;
    await until(() => hook.told().length === 2, 15_000);
    await hook.make("apn_1", 2);
    await until(() => hook.told().length === 3);
    expect(hook.told()).toEqual([1, 1, 2]);
  } finally {
    await jobs.stop();
  }
}, 60_000);

test("loses none and keeps each account's order while processes are killed at random", async () => {
  const hooks = [await newHook(), await newHook()];
  const accounts = 6;
  const kills = 5;
  const start = await accountProcesses({
    database: account.database.runtime,
    vaultAddress: vault.address,
    allowed: [receiver.host],
  });
  // Slow now and then, and down now and then, so that processes die in the middle of all kinds of things.
  const refused = new Set<string>();
  receiver.answerWith(async (posting) => {
    await sleep(Math.random() * 40);
    if (Math.random() > 0.1 || refused.has(idOf(posting))) return 200;
    refused.add(idOf(posting));
    return 500;
  });
  let rounds = 0;
  let making = true;
  const makingEvents = (async () => {
    while (making) {
      for (const hook of hooks) {
        await Promise.all(Array.from({ length: accounts }, (_, a) => hook.make(`apn_${a}`, rounds)));
      }
      rounds += 1;
      await sleep(400);
    }
  })();
  for (let killed = 0; killed < kills; killed++) {
    const process = await start();
    await sleep(200 + Math.random() * 900);
    await process.kill();
  }
  making = false;
  await makingEvents;
  // Claims of the killed run out in half a minute.
  const last = await start();
  const expected = accounts * rounds;
  await until(() => hooks.every((hook) => new Set(hook.postings().map(idOf)).size === expected), 150_000);
  await until(async () => {
    const left = await db
      .selectFrom("webhookLanes")
      .select("lane")
      .where(
        "endpointId",
        "in",
        hooks.map(({ key }) => key.endpointId),
      )
      .execute();
    return left.length === 0;
  }, 60_000);
  await last.kill();
  for (const hook of hooks) {
    for (const posting of hook.postings()) new Webhook(hook.signingKey).verify(posting.body, posting.headers);
    for (let a = 0; a < accounts; a++) {
      // Each event's first arrival: repeats come after it, never before its turn.
      const seen = [
        ...new Set(
          hook
            .postings()
            .filter((one) => accountOf(one) === `apn_${a}`)
            .map(numberOf),
        ),
      ];
      expect(seen).toEqual(Array.from({ length: rounds }, (_, n) => n));
    }
  }
}, 300_000);
