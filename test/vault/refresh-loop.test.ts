// The loop that refreshes ahead of time: who gets which row, what a provider that hangs or fails can do to others, and how it
// stops. Two vaults share the work where the test is about sharing.
import { expect, test } from "vitest";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { claimDue, mostFaults } from "../../services/vault/refresh-claims.ts";
import { addApp, granted } from "./stand-in-app.ts";
import { until, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { db, rowOf, lease, makeDue, credential } = vault;
const quick = await addApp(vault, "quick");
const slow = await addApp(vault, "slow");
const budgeted = await addApp(vault, "budgeted", { token: { refreshes_per_minute: 12 } });
const idle = await addApp(vault, "idle", { lifecycle: { refresh_idle_seconds: 1000 } });
const looping = [
  await vault.startVault({ loop: true, worker: false }),
  await vault.startVault({ loop: true, worker: false }),
];

const generations = async (accountIds: readonly string[]) =>
  Promise.all(accountIds.map(async (accountId) => (await rowOf(accountId)).generation));
const allAt = (accountIds: readonly string[], generation: bigint) => async () =>
  (await generations(accountIds)).every((each) => each === generation);
const secondsUntil = (time: Date | null) => ((time?.getTime() ?? 0) - Date.now()) / 1000;

test("refreshes what is due, each account once though two vaults look for work, before any caller has to wait", async () => {
  const strict = await Promise.all([1, 2, 3, 4].map(() => vault.connectAccount()));
  const sent = vault.tokenRequests();
  await makeDue(...strict);
  await until(allAt(strict, 2n));
  expect(vault.tokenRequests() - sent).toBe(4);
  expect(vault.provider.stats.familiesRevokedByReuse).toBe(0);
  const { lease: ready } = await lease(strict[0] ?? "");
  expect(ready).toMatchObject({ generation: 2n, refreshed: false });
  expect(secondsUntil((await rowOf(strict[0] ?? "")).nextRefreshTime)).toBeGreaterThan(2000);
});

test("a provider that hangs gets ten requests at a time and delays no other provider's accounts", async () => {
  const gate = Promise.withResolvers<void>();
  let atWork = 0;
  slow.shim.misbehave(async () => {
    atWork += 1;
    await gate.promise;
    return granted();
  });
  const waiting = await slow.importAccounts(24);
  await until(() => atWork >= 20);
  const others = await quick.importAccounts(15);
  await until(allAt(others, 2n), 5_000);
  // Two vaults with ten each.
  expect(atWork).toBe(20);
  expect(await generations(waiting)).toEqual(Array(24).fill(1n));
  gate.resolve();
  await until(allAt(waiting, 2n));
});

test("sends an app no more refreshes than its budget lets it", async () => {
  const accounts = await budgeted.importAccounts(8);
  await until(() => budgeted.shim.requests.length >= 4);
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  // Twelve a minute: each of the two vaults has two saved up, and gets one more in five seconds.
  expect(budgeted.shim.requests.length).toBeLessThanOrEqual(6);
  await db.updateTable("credentials").set({ nextRefreshTime: null }).where("accountId", "in", accounts).execute();
});

test("waits after a failure for five seconds, then twice as long, and asks nothing meanwhile", async () => {
  quick.shim.misbehave(() => ({ status: 503, body: "{}" }));
  const accountId = await quick.importAccount();
  const sent = quick.shim.requests.length;
  await until(async () => (await rowOf(accountId)).failures === 1);
  const first = secondsUntil((await rowOf(accountId)).nextRefreshTime);
  expect(first).toBeGreaterThan(3);
  expect(first).toBeLessThan(6.1);
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(quick.shim.requests.length - sent).toBe(1);
  await makeDue(accountId);
  await until(async () => (await rowOf(accountId)).failures === 2);
  expect(secondsUntil((await rowOf(accountId)).nextRefreshTime)).toBeGreaterThan(7);
  quick.shim.misbehave(() => ({ status: 429, body: "{}", headers: { "retry-after": "300" } }));
  await makeDue(accountId);
  await until(async () => (await rowOf(accountId)).failures === 3);
  expect(secondsUntil((await rowOf(accountId)).nextRefreshTime)).toBeGreaterThan(295);
  quick.shim.misbehave(() => granted());
  await makeDue(accountId);
  await until(allAt([accountId], 2n));
});

test("fails no lease while the token endpoint is down for the whole margin, then says so, then is healthy by itself", async () => {
  quick.shim.misbehave(() => ({ status: 502, body: "<html>" }));
  const accountId = await quick.importAccount({ lifetimeSeconds: 300 });
  for (let round = 1; round <= 3; round += 1) {
    await until(async () => (await rowOf(accountId)).failures >= round);
    const { lease: served } = await lease(accountId);
    expect(served).toMatchObject({ generation: 1n, refreshed: false });
    await makeDue(accountId);
  }
  await vault.endTokenIn(accountId, -1);
  await expect(lease(accountId)).rejects.toMatchObject({ code: "UNAVAILABLE", reason: "REFRESH_FAILING" });
  expect(await credential(accountId)).toMatchObject({ state: CredentialState.ACTIVE, stateReason: "PROVIDER_FAILING" });
  quick.shim.misbehave(() => granted());
  await makeDue(accountId);
  await until(allAt([accountId], 2n));
  expect((await lease(accountId)).lease).toMatchObject({ generation: 2n, refreshed: false });
});

test("serves a token that still works at once, though its provider hangs", async () => {
  const gate = Promise.withResolvers<void>();
  quick.shim.misbehave(async () => {
    await gate.promise;
    return granted();
  });
  const accountId = await quick.importAccount({ isDue: false });
  await vault.endTokenIn(accountId, 4);
  const startMs = performance.now();
  expect((await lease(accountId)).lease).toMatchObject({ generation: 1n });
  expect(performance.now() - startMs).toBeLessThan(2_500);
  gate.resolve();
  await until(allAt([accountId], 2n));
  quick.shim.misbehave(() => granted());
});

test("leaves a row alone that cannot be opened, after five faults, and works on all others", async () => {
  const poisoned = await quick.importAccount({ isDue: false });
  await db
    .updateTable("credentials")
    .set({ blob: Buffer.alloc(120, 1) })
    .where("accountId", "=", poisoned)
    .execute();
  for (let fault = 1; fault <= mostFaults; fault += 1) {
    const [other] = await Promise.all([quick.importAccount(), makeDue(poisoned)]);
    await until(async () => (await rowOf(poisoned)).faults === fault);
    await until(allAt([other], 2n));
  }
  expect(await rowOf(poisoned)).toMatchObject({ nextRefreshTime: null, stateReason: "QUARANTINED", state: "ACTIVE" });
  const { credentialsByReason } = await (await vault.vault.as("operator")).getVaultStatus(
    {},
    {
      deadlineMs: Date.now() + 5_000,
    },
  );
  expect(credentialsByReason).toMatchObject({ QUARANTINED: 1n });
  const entries = await db
    .selectFrom("auditEntries")
    .selectAll()
    .where("accountId", "=", poisoned)
    .orderBy("id")
    .execute();
  expect(entries.filter(({ reason }) => reason === "QUARANTINED")).toMatchObject([
    { action: "credential.refresh_failed", service: "vault", projectId: "proj_1" },
  ]);
});

test("keeps a grant alive that its provider would end for want of use", async () => {
  idle.shim.misbehave(() => granted({ expires_in: undefined }));
  const accountId = await idle.importAccount();
  await until(allAt([accountId], 2n));
  const { expireTime, nextRefreshTime } = await rowOf(accountId);
  expect(expireTime).toBeNull();
  expect(secondsUntil(nextRefreshTime)).toBeGreaterThan(590);
  expect(secondsUntil(nextRefreshTime)).toBeLessThan(701);
});

test("a claim is nobody else's, comes back when its process is gone, and leaves alone what another may be sending", async () => {
  // An app that no vault here knows.
  const [taken, sending] = [await quick.importAccount({ isDue: false }), await quick.importAccount({ isDue: false })];
  const named = { appSlug: "nobody's", nextRefreshTime: new Date(Date.now() - 1_000) };
  await db.updateTable("credentials").set(named).where("accountId", "in", [taken, sending]).execute();
  const intent = { intentId: "int_1", intentBy: "int_2", intentTime: new Date() };
  await db.updateTable("credentials").set(intent).where("accountId", "=", sending).execute();
  const rooms = [{ appSlug: "nobody's", room: 5 }];
  const claims = await Promise.all([claimDue(db, rooms, 5), claimDue(db, rooms, 5)]);
  expect(claims.flat().map(({ accountId }) => accountId)).toEqual([taken]);
  expect(secondsUntil((await rowOf(taken)).nextRefreshTime)).toBeGreaterThan(55);
  expect(secondsUntil((await rowOf(taken)).nextRefreshTime)).toBeLessThan(61);
});

test("claims nothing more when it stops, and stores what is under way first", async () => {
  const alone = await vault.startVault({ worker: false, loop: true });
  for (const { loop } of looping) await loop?.stop();
  const gate = Promise.withResolvers<void>();
  let atWork = 0;
  slow.shim.misbehave(async () => {
    atWork += 1;
    await gate.promise;
    return granted();
  });
  const accounts = await slow.importAccounts(3);
  await until(() => atWork === 3);
  let stopped = false;
  const stopping = alone.loop?.stop().then(() => {
    stopped = true;
  });
  const late = await slow.importAccount();
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(stopped).toBe(false);
  gate.resolve();
  await stopping;
  expect(await generations([...accounts, late])).toEqual([2n, 2n, 2n, 1n]);
  expect(atWork).toBe(3);
});
