// What becomes of a grant whose answer has come while the database goes down, or takes it without being able to say so: a
// Postgres of this file's own, true vault processes, and a provider that rotates strictly.
import { mkdtempSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { sql } from "kysely";
import { afterAll, afterEach, expect, test } from "vitest";
import { startOwnPostgres } from "../support/own-postgres.ts";
import { startRelay } from "../support/relay.ts";
import { startVaultProcess, type VaultProcess } from "../support/vault-process.ts";
import { until, vaultFixture, watchingProxyId } from "./vault-fixture.ts";
import { watchLeasesAs } from "./watching-proxy.ts";

const postgres = await startOwnPostgres();
afterAll(() => postgres.remove());
const vault = await vaultFixture(postgres.database);
const { shim, endTokenIn, rowOf, db } = vault;

const started: VaultProcess[] = [];
const start = async (settings: Readonly<Record<string, string>> = {}) => {
  const process = await startVaultProcess(vault, settings);
  started.push(process);
  return process;
};
// Each has a loop, which would work on the next test's accounts.
afterEach(async () => {
  for (const { child } of started.splice(0)) await child.stop();
});

const newSpool = () => mkdtempSync(join(vault.directory, "spool-"));

function refreshBy({ asAccount }: VaultProcess, accountId: string) {
  const request = { projectId: "proj_1", environment: 1, accountId, generation: 0n } as const;
  return asAccount.refreshCredential(request, { deadlineMs: Date.now() + 30_000 });
}

/** An account whose token has ended, and whose refresh finds the database gone when the provider has answered. */
async function accountOfOutage(): Promise<{ accountId: string; sent: number }> {
  const accountId = await vault.connectAccount();
  await endTokenIn(accountId, -1);
  const sent = vault.tokenRequests();
  shim.misbehave(async () => {
    await postgres.stopAtOnce();
    return undefined;
  });
  return { accountId, sent };
}

/** The account's credential works: leased anew, as by a proxy that has found the vault again. */
async function expectAlive(accountId: string): Promise<void> {
  const watching = await watchLeasesAs(vault.asProxy, watchingProxyId);
  expect(await vault.callApi((await vault.lease(accountId)).lease)).toBe(200);
  watching.goodbye();
  await watching.ended;
}

test.each(["with", "without"])(
  "Postgres is stopped at once before the commit, %s a spool: stored when it is back",
  async (how) => {
    const spool = newSpool();
    const living = await start(how === "with" ? { DEPUTY_SPOOL_DIRECTORY: spool } : {});
    const { accountId, sent } = await accountOfOutage();
    const refreshing = refreshBy(living, accountId);
    await until(() => living.log().includes("could not be stored yet"));
    if (how === "with") await until(() => readdirSync(spool).length === 1);
    await postgres.start();
    expect(await refreshing.catch((error: unknown) => error)).toMatchObject({ credential: { generation: 2n } });
    expect(vault.tokenRequests() - sent).toBe(1);
    expect(readdirSync(spool)).toEqual([]);
    await expectAlive(accountId);
  },
);

test("Postgres is stopped at once, and the vault killed too: the spool has the grant for the next start", async () => {
  const DEPUTY_SPOOL_DIRECTORY = newSpool();
  const doomed = await start({ DEPUTY_SPOOL_DIRECTORY, DEPUTY_TEST_CRASH_POINT: "spooled" });
  const { accountId, sent } = await accountOfOutage();
  await expect(refreshBy(doomed, accountId)).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(await doomed.ended).toBe("SIGKILL");
  await postgres.start();
  expect(await rowOf(accountId)).toMatchObject({ generation: 1n });
  await start({ DEPUTY_SPOOL_DIRECTORY });
  expect(await rowOf(accountId)).toMatchObject({ generation: 2n, state: "ACTIVE" });
  expect(readdirSync(DEPUTY_SPOOL_DIRECTORY)).toEqual([]);
  expect(vault.tokenRequests() - sent).toBe(1);
  await expectAlive(accountId);
});

test("the same without a spool: this one grant is lost, and says so", async () => {
  const doomed = await start();
  const { accountId } = await accountOfOutage();
  const call = refreshBy(doomed, accountId).catch(() => undefined);
  await until(() => doomed.log().includes("could not be stored yet"));
  doomed.signal("SIGKILL");
  await Promise.all([doomed.ended, call]);
  await postgres.start();
  shim.misbehave(() => undefined);
  // As after the time in which the killed process might still have been sending.
  const intentTime = sql<Date>`now() - interval '31 seconds'`;
  await db.updateTable("credentials").set({ intentTime }).where("accountId", "=", accountId).execute();
  const next = await start();
  await expect(refreshBy(next, accountId)).rejects.toMatchObject({ reason: "NEEDS_REAUTH" });
  expect(await rowOf(accountId)).toMatchObject({ stateReason: "GRANT_LOST" });
  expect(vault.provider.stats.familiesRevokedByReuse).toBe(1);
});

test.each(["goes on", "is killed"])(
  "the acknowledgement of the commit is lost and the vault %s: stored once, with one token call",
  async (fate) => {
    const socket = new URL(postgres.database.runtime.url).searchParams.get("host");
    const relay = await startRelay(`${socket}/.s.PGSQL.5432`);
    const url = new URL(postgres.database.runtime.url);
    url.searchParams.delete("host");
    url.port = String(relay.port);
    const cut = await start({ DEPUTY_DATABASE_URL: url.href });
    const accountId = await vault.connectAccount();
    await endTokenIn(accountId, -1);
    const sent = vault.tokenRequests();
    let lost: Promise<void> | undefined;
    shim.misbehave(() => {
      lost ??= relay.loseAnswer(endsWrite).then(() => {
        if (fate === "is killed") cut.signal("SIGKILL");
      });
      return undefined;
    });
    const refreshing = refreshBy(cut, accountId).catch(() => undefined);
    await until(() => lost !== undefined);
    await lost;
    if (fate === "goes on") {
      expect(await refreshing).toMatchObject({ refreshed: true, credential: { generation: 2n } });
      expect(cut.log()).toContain("could not be stored yet");
    } else expect(await cut.ended).toBe("SIGKILL");
    expect(await rowOf(accountId)).toMatchObject({ generation: 2n, state: "ACTIVE", intentId: null });
    await expectAlive(accountId);
    expect(vault.tokenRequests() - sent).toBe(1);
    await cut.child.stop();
    await relay.stop();
  },
);

/** The answer to what a refresh stores, committed: one statement, outside of a transaction, that ends with its audit entry. */
function endsWrite(answer: string): boolean {
  return answer.includes("INSERT 0 1\0") && answer.endsWith("I");
}
