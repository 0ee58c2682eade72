// What becomes of an account when the process that refreshes it is killed, stalled or cut off, at each place of a refresh:
// true processes, true signals, a provider that rotates strictly, and the same provider with a reuse grace.
import { mkdtempSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { sql } from "kysely";
import { afterEach, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { signToken } from "../support/stand-in-service.ts";
import { startVaultProcess, type VaultProcess } from "../support/vault-process.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";
import { watchLeasesAs } from "./watching-proxy.ts";

const vault = await vaultFixture();
const { db, rowOf, lease, endTokenIn, shim, provider } = vault;
const sandbox = vault.catalog.get("sandbox");
if (sandbox === undefined) throw new Error("the sandbox is not in the catalog");

const started: VaultProcess[] = [];
const start = async (settings: Readonly<Record<string, string>> = {}) => {
  const process = await startVaultProcess(vault, settings);
  started.push(process);
  return process;
};
// Each has a loop, which would work on the next test's accounts.
afterEach(async () => {
  for (const { child, signal } of started.splice(0)) {
    signal("SIGCONT");
    await child.stop();
  }
});
const successes = () => provider.stats.tokenRequests.refresh_token?.success ?? 0;

/** As after the time in which the killed process might still have been sending. */
async function passIntentTime(accountId: string): Promise<void> {
  const intentTime = sql<Date>`now() - interval '31 seconds'`;
  await db.updateTable("credentials").set({ intentTime }).where("accountId", "=", accountId).execute();
}

function refreshBy({ asAccount }: { asAccount: typeof vault.asAccount }, accountId: string) {
  return asAccount.refreshCredential({ projectId: "proj_1", environment: 1, accountId, generation: 0n }, soon());
}

function withGrace(seconds: number): void {
  if (sandbox)
    vault.catalog.set("sandbox", { ...sandbox, lifecycle: { ...sandbox.lifecycle, reuse_grace_seconds: seconds } });
  shim.allowReuse(seconds * 1000);
}

/** Has a process killed at a point of a refresh; gives the account, whose token has ended, and the token calls before. */
async function crashAt(point: string): Promise<{ accountId: string; sent: number }> {
  const accountId = await vault.connectAccount();
  await endTokenIn(accountId, -1);
  const sent = vault.tokenRequests();
  const crashed = await start({ DEPUTY_TEST_CRASH_POINT: point });
  await expect(refreshBy(crashed, accountId)).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(await crashed.ended).toBe("SIGKILL");
  return { accountId, sent };
}

test.each(["locked", "intended"])(
  "killed when %s, before anything is sent: recovers, with one token call",
  async (point) => {
    const { accountId, sent } = await crashAt(point);
    expect(vault.tokenRequests()).toBe(sent);
    expect((await rowOf(accountId)).intentId !== null).toBe(point === "intended");
    await passIntentTime(accountId).catch(() => undefined);
    const { lease: fresh } = await lease(accountId);
    expect(fresh).toMatchObject({ generation: 2n });
    expect(vault.tokenRequests() - sent).toBe(1);
    expect(await vault.callApi(fresh)).toBe(200);
  },
);

test("strict, killed with the answer in hand and nothing durable: this one grant needs its user, and says why", async () => {
  const { accountId } = await crashAt("answered");
  await passIntentTime(accountId);
  await expect(lease(accountId)).rejects.toMatchObject({ reason: "NEEDS_REAUTH" });
  expect((await rowOf(accountId)).stateReason).toBe("GRANT_LOST");
});

test("with a reuse grace, killed with the answer in hand: stored by the next process, without a wait", async () => {
  withGrace(60);
  const before = successes();
  const { accountId } = await crashAt("answered");
  const { lease: fresh } = await lease(accountId);
  expect(fresh).toMatchObject({ generation: 2n });
  expect(await vault.callApi(fresh)).toBe(200);
  expect(successes() - before, "the provider rotated once").toBe(1);
  withGrace(0);
});

test.each([0, 60])("killed while the request is in flight, with a grace of %i s", async (graceSeconds) => {
  withGrace(graceSeconds);
  const accountId = await vault.connectAccount();
  await endTokenIn(accountId, -1);
  const doomed = await start();
  const gate = Promise.withResolvers<void>();
  let held = false;
  shim.misbehave(async () => {
    held = true;
    await gate.promise;
    return undefined;
  });
  const before = successes();
  const call = refreshBy(doomed, accountId).catch(() => undefined);
  await until(() => held);
  doomed.signal("SIGKILL");
  await Promise.all([doomed.ended, call]);
  gate.resolve();
  await until(() => successes() === before + 1);
  shim.misbehave(() => undefined);
  await passIntentTime(accountId);
  if (graceSeconds === 0) await expect(lease(accountId)).rejects.toMatchObject({ reason: "NEEDS_REAUTH" });
  else expect(await vault.callApi((await lease(accountId)).lease)).toBe(200);
  withGrace(0);
});

test("killed after the spool and before the commit: the next start stores it, with no second token call", async () => {
  const DEPUTY_SPOOL_DIRECTORY = mkdtempSync(join(vault.directory, "spool-"));
  const accountId = await vault.connectAccount();
  await endTokenIn(accountId, -1);
  const crashed = await start({ DEPUTY_TEST_CRASH_POINT: "spooled", DEPUTY_SPOOL_DIRECTORY });
  const sent = vault.tokenRequests();
  const release = Promise.withResolvers<void>();
  let holding: Promise<unknown> | undefined;
  const held = Promise.withResolvers<void>();
  shim.misbehave(async () => {
    holding = db.transaction().execute(async (transaction) => {
      await sql`select from credentials where account_id = ${accountId} for update`.execute(transaction);
      held.resolve();
      await release.promise;
    });
    await held.promise;
    return undefined;
  });
  await expect(refreshBy(crashed, accountId)).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(await crashed.ended).toBe("SIGKILL");
  // The killed process's own statement waits for the row too, and goes with its connection.
  const admin = await openConnection({ ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 5_000 });
  await admin.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deputy-vault'");
  await admin.end();
  release.resolve();
  await holding;
  expect(readdirSync(DEPUTY_SPOOL_DIRECTORY)).toHaveLength(1);
  expect((await rowOf(accountId)).generation).toBe(1n);
  await start({ DEPUTY_SPOOL_DIRECTORY });
  expect(await rowOf(accountId)).toMatchObject({ generation: 2n, state: "ACTIVE" });
  expect(readdirSync(DEPUTY_SPOOL_DIRECTORY)).toEqual([]);
  expect(vault.tokenRequests() - sent).toBe(1);
  expect(await vault.callApi((await lease(accountId)).lease)).toBe(200);
});

test("killed after the commit: nothing is left to do", async () => {
  const { accountId, sent } = await crashAt("recorded");
  const { lease: fresh } = await lease(accountId);
  expect(fresh).toMatchObject({ generation: 2n, refreshed: false });
  expect(vault.tokenRequests() - sent).toBe(1);
});

test("every connection to the database is ended between answer and commit: recovers", async () => {
  const accountId = await vault.connectAccount();
  await endTokenIn(accountId, -1);
  const cut = await start();
  const sent = vault.tokenRequests();
  shim.misbehave(async () => {
    const admin = await openConnection({
      ...vault.database.superuser,
      applicationName: "t",
      statementTimeoutMs: 5_000,
    });
    await admin.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deputy-vault'");
    await admin.end();
    return undefined;
  });
  expect(await refreshBy(cut, accountId)).toMatchObject({ refreshed: true, credential: { generation: 2n } });
  expect(vault.tokenRequests() - sent).toBe(1);
});

test("stalled beyond every limit while its lock is lost: nobody sends a second time, and it stores when it wakes", async () => {
  const accountId = await vault.connectAccount();
  const stalled = await start();
  const gate = Promise.withResolvers<void>();
  let held = false;
  shim.misbehave(async () => {
    held = true;
    await gate.promise;
    return undefined;
  });
  const sent = vault.tokenRequests();
  const call = refreshBy(stalled, accountId).catch(() => undefined);
  await until(() => held);
  stalled.signal("SIGSTOP");
  gate.resolve();
  const admin = await openConnection({ ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 5_000 });
  await admin.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deputy-vault'");
  await admin.end();
  await passIntentTime(accountId);
  expect(await vault.vault.refresher.refresh(await rowOf(accountId))).toEqual({ kind: "failing" });
  expect(await rowOf(accountId)).toMatchObject({ state: "UNKNOWN", generation: 1n });
  expect((await lease(accountId)).lease).toMatchObject({ generation: 1n });
  stalled.signal("SIGCONT");
  await until(async () => (await rowOf(accountId)).generation === 2n);
  await call;
  expect(await rowOf(accountId)).toMatchObject({ state: "ACTIVE", stateReason: "" });
  expect(vault.tokenRequests() - sent).toBe(1);
  expect(await vault.callApi((await lease(accountId)).lease)).toBe(200);
});

test("only the two grants were lost that nobody could have kept", () => {
  expect(provider.stats.familiesRevokedByReuse).toBe(2);
});

test("twelve vaults at once: one token call", async () => {
  const accountId = await vault.connectAccount();
  const vaults = await Promise.all(Array.from({ length: 12 }, () => vault.startVault({ worker: false })));
  await endTokenIn(accountId, -1);
  const row = await rowOf(accountId);
  const sent = vault.tokenRequests();
  const outcomes = await Promise.all(vaults.map(({ refresher }) => refresher.refresh(row)));
  expect(vault.tokenRequests() - sent).toBe(1);
  expect(outcomes.filter(({ kind }) => kind === "refreshed")).toHaveLength(1);
  expect(outcomes.filter(({ kind }) => kind === "current")).toHaveLength(11);
});

test.each(["1", "-1"])("a process whose clock is %s h off refreshes what is due, and only that", async (hours) => {
  const [due, other] = [await vault.connectAccount(), await vault.connectAccount()];
  const wrong = await start({
    NODE_OPTIONS: `--import ${join(import.meta.dirname, "../support/shift-clock.ts")}`,
    TEST_CLOCK_SHIFT_HOURS: hours,
  });
  expect(new Date(JSON.parse(wrong.log().split("\n")[0] ?? "").time).getTime()).not.toBeCloseTo(Date.now(), -6);
  const sent = vault.tokenRequests();
  await vault.makeDue(due);
  await until(async () => (await rowOf(due)).generation === 2n);
  const { rows } = await sql<{ seconds: number; now: Date }>`
    select extract(epoch from expire_time - now())::float8 as seconds, now() from credentials where account_id = ${due}`.execute(
    db,
  );
  expect(rows[0]?.seconds).toBeGreaterThan(3500);
  expect(rows[0]?.seconds).toBeLessThanOrEqual(3600);
  const claims = { sub: "cli_1", project_id: "proj_1", scope: "connect:proxy" };
  const call = { deadlineMs: Date.now() + 5_000, token: await signToken(claims, 4 * 3600) };
  const proxyId = `prx_clock_${hours}`;
  const watching = await watchLeasesAs(wrong.asProxy, proxyId);
  const { lease: leased } = await wrong.asProxy.leaseInjection({ ...whose, proxyId, accountId: other }, call);
  watching.goodbye();
  expect(leased).toMatchObject({ generation: 1n, refreshed: false });
  expect((leased?.leaseExpireTime?.getTime() ?? 0) - Date.now()).toBeGreaterThan(5_000);
  expect((leased?.leaseExpireTime?.getTime() ?? 0) - Date.now()).toBeLessThan(10_500);
  expect((await rowOf(other)).generation).toBe(1n);
  expect(vault.tokenRequests() - sent).toBe(1);
});
