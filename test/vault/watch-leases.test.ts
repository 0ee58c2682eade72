// The vault's side of the promise that a destroyed credential is used by no proxy any more: who gets leases, who is waited
// for, for how long, and over two vaults on one database. The proxies are played by hand (watching-proxy.ts).
import { sql } from "kysely";
import { afterEach, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { LeaseInvalidationReason } from "#proto/deputy/vault/v1/leases.ts";
import { insertInvalidations, listInvalidationsAfter } from "../../services/vault/lease-invalidations.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";
import { type WatchingProxy, watchLeasesAs } from "./watching-proxy.ts";

const vault = await vaultFixture();
const second = await vault.startVault({ worker: false });
const [proxy, secondProxy] = [vault.asProxy, await second.as("proxy")];
const { connectAccount, destroy, db } = vault;
const leaseMs = 10_000;

const opened: WatchingProxy[] = [];
afterEach(async () => {
  for (const watching of opened.splice(0)) {
    watching.goodbye();
    await watching.ended;
  }
});

async function watch(client: typeof proxy, proxyId: string, takesBatches = true): Promise<WatchingProxy> {
  const watching = await watchLeasesAs(client, proxyId, takesBatches);
  opened.push(watching);
  return watching;
}

const leaseAs = (client: typeof proxy, accountId: string, proxyId: string) =>
  client.leaseInjection({ ...whose, accountId, proxyId }, soon(vault.token));

const watcherOf = (proxyId: string) =>
  db.selectFrom("leaseWatchers").selectAll().where("proxyId", "=", proxyId).executeTakeFirst();

async function timed<Value>(work: Promise<Value>): Promise<number> {
  const startMs = performance.now();
  await work;
  return performance.now() - startMs;
}

/** Whether the work has ended within so long. */
async function endsWithin(work: Promise<unknown>, ms: number): Promise<boolean> {
  return Promise.race([
    work.then(() => true),
    new Promise<boolean>((resolve) => {
      setTimeout(() => resolve(false), ms);
    }),
  ]);
}

test("leases to a proxy that watches, at whatever vault, and to no other", async () => {
  const accountId = await connectAccount();
  const refused = { code: "FAILED_PRECONDITION", reason: "WATCH_REQUIRED" };
  await expect(leaseAs(proxy, accountId, "prx_new")).rejects.toMatchObject(refused);
  await expect(leaseAs(proxy, accountId, "")).rejects.toMatchObject(refused);
  const watching = await watch(proxy, "prx_new");
  for (const client of [proxy, secondProxy]) {
    const { lease } = await leaseAs(client, accountId, "prx_new");
    expect(lease?.leaseDurationMs).toBe(leaseMs);
  }
  watching.goodbye();
  expect(await watching.ended).toBeUndefined();
  for (const client of [proxy, secondProxy]) {
    await expect(leaseAs(client, accountId, "prx_new")).rejects.toMatchObject(refused);
  }
});

test("leases to no proxy that was not heard for five seconds, though its stream is open", async () => {
  const accountId = await connectAccount();
  await watch(proxy, "prx_late");
  await leaseAs(proxy, accountId, "prx_late");
  await vault.pauseHeartbeatsOf("prx_late", 6);
  await expect(leaseAs(proxy, accountId, "prx_late")).rejects.toMatchObject({ reason: "WATCH_REQUIRED" });
});

test("answers a destroyer when proxies at both vaults have acknowledged, and not before", async () => {
  const accountId = await connectAccount();
  const [here, there] = [await watch(proxy, "prx_here"), await watch(secondProxy, "prx_there")];
  there.acknowledging = false;
  const destroying = destroy(accountId);
  await until(() => there.invalidations.length === 1 && here.invalidations.length === 1);
  expect(there.invalidations).toMatchObject([
    { accountId, projectId: "proj_1", reason: LeaseInvalidationReason.REVOKED },
  ]);
  expect(await endsWithin(destroying, 1_500)).toBe(false);
  there.acknowledge();
  expect(await timed(destroying)).toBeLessThan(1_000);
});

test("answers in one round trip when all proxies are well", async ({ annotate }) => {
  await watch(proxy, "prx_here");
  await watch(secondProxy, "prx_there");
  const times: number[] = [];
  for (let round = 0; round < 5; round += 1) times.push(await timed(destroy(await connectAccount())));
  times.sort((a, b) => a - b);
  await annotate(`destroyed, and acknowledged by three proxies, in ${times.map((ms) => ms.toFixed(0)).join(", ")} ms`);
  expect(times[2]).toBeLessThan(leaseMs);
});

test("wakes who waits, in every vault process, when a proxy acknowledges, and when it goes, and not at its heartbeats", async () => {
  const connection = await openConnection({
    ...vault.database.superuser,
    applicationName: "t",
    statementTimeoutMs: 10_000,
  });
  let woken = 0;
  connection.onNotification(() => {
    woken += 1;
  });
  await connection.query("listen lease_acknowledgements");
  const accountId = await connectAccount();
  const watching = await watchLeasesAs(proxy, "prx_waking");
  await destroy(accountId);
  await until(() => woken > 0);
  const [before, told] = [await watcherOf("prx_waking"), woken];
  await until(async () => Number((await watcherOf("prx_waking"))?.lastSeenTime) > Number(before?.lastSeenTime));
  // The answer comes behind what the database told before it.
  await connection.query("select");
  expect(woken).toBe(told);
  watching.goodbye();
  await until(() => woken > told);
  await connection.end();
});

test("tells of accounts that are destroyed together at once, and one by one where a proxy does not take that", async () => {
  const accountIds = [await connectAccount(), await connectAccount(), await connectAccount()];
  const watching = await watch(proxy, "prx_batches");
  const older = await watch(secondProxy, "prx_older", false);
  await destroy(...accountIds);
  for (const { invalidations } of [watching, older]) {
    expect(invalidations.map(({ accountId }) => accountId).sort()).toEqual([...accountIds].sort());
  }
  expect([watching.messageSizes, older.messageSizes]).toEqual([[3], [1, 1, 1]]);
});

test("waits for a proxy that does not acknowledge for the lease time, a repeat too, and then for it no longer", async () => {
  const accountIds = [await connectAccount(), await connectAccount()] as const;
  const silent = await watch(secondProxy, "prx_silent");
  silent.acknowledging = false;
  const first = timed(destroy(accountIds[0]));
  await until(() => silent.invalidations.length === 1);
  const repeat = timed(destroy(accountIds[0]));
  expect(await first).toBeGreaterThan(leaseMs);
  expect(await first).toBeLessThan(leaseMs + 2_000);
  expect(await repeat).toBeGreaterThan(leaseMs - 1_000);
  // Not heard for longer than a lease can last after the last one given.
  silent.cut();
  await silent.ended;
  await vault.pauseHeartbeatsOf("prx_silent", 16);
  expect(await timed(destroy(accountIds[1]))).toBeLessThan(2_000);
}, 40_000);

test("keeps waiting for a proxy whose stream has broken off: it may still hold a lease", async () => {
  const accountId = await connectAccount();
  const broken = await watch(proxy, "prx_broken");
  broken.cut();
  await broken.ended;
  const destroying = destroy(accountId);
  expect(await endsWithin(destroying, 1_500)).toBe(false);
  // It is back, holds nothing, and has the invalidation behind it.
  const again = await watch(secondProxy, "prx_broken");
  expect(await timed(destroying)).toBeLessThan(1_000);
  expect(again.invalidations).toEqual([]);
});

test("gives a proxy one stream: a new one ends the old, whose acknowledgements count no more", async () => {
  const old = await watch(proxy, "prx_twice");
  const { watchId } = (await watcherOf("prx_twice")) ?? {};
  await watch(secondProxy, "prx_twice");
  expect((await watcherOf("prx_twice"))?.watchId).not.toBe(watchId);
  expect(await old.ended).toMatchObject({ code: "ABORTED", reason: "WATCH_SUPERSEDED" });
});

test("takes no acknowledgement of what was not sent", async () => {
  const lying = await watch(proxy, "prx_lying");
  lying.acknowledge(1_000_000n);
  expect(await lying.ended).toMatchObject({ code: "INVALID_ARGUMENT" });
  expect((await watcherOf("prx_lying"))?.acknowledgedSequence).toBeLessThan(1_000_000n);
  await db.deleteFrom("leaseWatchers").where("proxyId", "=", "prx_lying").execute();
});

test("tells of an account that was connected anew, and goes on without waiting", async () => {
  const accountId = await connectAccount();
  const watching = await watch(secondProxy, "prx_here");
  const { redirect } = await vault.consent(accountId);
  await vault.asAccount.completeAuthorization(redirect, soon());
  await until(() => watching.invalidations.length === 1);
  expect(watching.invalidations).toMatchObject([{ accountId, reason: LeaseInvalidationReason.RECONNECTED }]);
});

test("numbers invalidations in the order of their commits, so that none can appear below one that was read", async () => {
  const key = (accountId: string) => ({ projectId: "proj_1", accountIds: [accountId] });
  const [{ sequence: start } = { sequence: 0n }] = (await listInvalidationsAfter(db, 0n, 1_000)).slice(-1);
  const gate = Promise.withResolvers<void>();
  const inserted = Promise.withResolvers<void>();
  const slow = db.transaction().execute(async (transaction) => {
    await insertInvalidations(transaction, key("apn_slow"), "REVOKED");
    inserted.resolve();
    await gate.promise;
  });
  await inserted.promise;
  const quick = db
    .transaction()
    .execute((transaction) => insertInvalidations(transaction, key("apn_quick"), "REVOKED"));
  expect(await endsWithin(quick, 300)).toBe(false);
  expect(await listInvalidationsAfter(db, start, 10)).toEqual([]);
  gate.resolve();
  await Promise.all([slow, quick]);
  const rows = await listInvalidationsAfter(db, start, 10);
  expect(rows.map(({ accountId }) => accountId)).toEqual(["apn_slow", "apn_quick"]);
});

test("goes on at the speed of its polls while notifications are lost, and listens again", async () => {
  const accountId = await connectAccount();
  const watching = await watch(secondProxy, "prx_here");
  await sql`select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen lease%'`.execute(db);
  expect(await timed(destroy(accountId))).toBeLessThan(4_000);
  expect(watching.invalidations).toHaveLength(1);
});

test("stops at once though proxies watch, and they lose nothing", async () => {
  const third = await vault.startVault({ worker: false });
  const watching = await watchLeasesAs(await third.as("proxy"), "prx_third");
  expect(await timed(third.stop())).toBeLessThan(1_900);
  expect(await watching.ended).toBeUndefined();
  await watch(proxy, "prx_third");
  expect(await timed(destroy(await connectAccount()))).toBeLessThan(2_000);
});
