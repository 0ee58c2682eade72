// Revoking while refreshes and re-connections of the same accounts are under way at two vaults: nothing comes back to life, and
// what a provider grants too late it is told to take back.
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const second = await vault.startVault({ worker: false });
const accounts = [vault.asAccount, await second.as("account")] as const;
const { shim, db, provider } = vault;

const accountCount = 40;
// With one re-connection each: 200.
const refreshesPerAccount = 4;
const spreadMs = 400;
const providerMs = 1_500;

const refusal = (error: unknown) => (error as { reason?: string }).reason ?? String(error);
const faults = (lines: readonly string[]) => lines.filter((line) => line.includes('"INTERNAL"'));

test("nothing comes back to life when revokes race 200 refreshes and re-connections", async ({ annotate }) => {
  const names: string[] = [];
  for (let index = 0; index < accountCount; index += 1) names.push(await vault.connectAccount());
  const redirects = new Map<string, Awaited<ReturnType<typeof vault.consent>>["redirect"]>();
  for (const accountId of names) redirects.set(accountId, (await vault.consent(accountId)).redirect);

  // The provider hears of no revocation until the race is over, so that what comes too late is good.
  const raceOver = Promise.withResolvers<void>();
  shim.misbehave(async (path) => {
    if (path === "/token/revocation") await raceOver.promise;
    else await sleep(Math.random() * providerMs);
    return undefined;
  });
  const destroyedMs = new Map<string, number>();
  async function race(accountId: string, index: number): Promise<string[]> {
    const named = { projectId: whose.projectId, environment: whose.environment, accountId };
    const attempt = async (work: () => Promise<unknown>, withinMs = spreadMs) => {
      await sleep(Math.random() * withinMs);
      return work().then(() => "OK", refusal);
    };
    const refreshes = Array.from({ length: refreshesPerAccount }, (_, index) =>
      attempt(() => (accounts[index % 2] ?? accounts[0]).refreshCredential(named, soon())),
    );
    const reconnection = attempt(() => accounts[1].completeAuthorization(redirects.get(accountId) ?? {}, soon()));
    const revoke = attempt(
      async () => {
        await accounts[0].destroyCredentials({ ...named, accountIds: [accountId] }, soon());
        destroyedMs.set(accountId, performance.now());
        // Half of them early, so that something comes too late, and half of them late, so that something is in time.
      },
      index % 2 === 0 ? spreadMs : 2 * providerMs,
    );
    return Promise.all([revoke, reconnection, ...refreshes]);
  }
  const outcomes = await Promise.all(names.map(race));
  await Promise.all([vault.vault.refresher.idle(), second.refresher.idle()]);

  expect([...faults(vault.vault.lines), ...faults(second.lines)]).toEqual([]);
  expect(outcomes.map(([revoke]) => revoke)).toEqual(Array(accountCount).fill("OK"));
  const others = outcomes.flatMap((all) => all.slice(1));
  const count = (reason: string) => others.filter((one) => one === reason).length;
  expect(others).toHaveLength(200);
  expect(others.filter((one) => one !== "OK" && one !== "ACCOUNT_REVOKED")).toEqual([]);

  raceOver.resolve();
  const pending = () => db.selectFrom("revocations").select("id").where("state", "=", "PENDING").execute();
  await until(async () => (await pending()).length === 0, 20_000);
  const outbox = await db.selectFrom("revocations").select(["accountId", "state", "blob"]).execute();
  expect(outbox.filter(({ state, blob }) => state !== "DONE" || blob !== null)).toEqual([]);
  const wiped = { blob: null, dataKeyId: null, wrappedDataKey: null, kekId: null, nextRefreshTime: null };
  for (const accountId of names) {
    expect(await vault.rowOf(accountId)).toMatchObject({ ...wiped, state: "REVOKED" });
    await expect(vault.lease(accountId)).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  }
  // The API refuses every token that a re-connection was granted after its account's revoke had answered.
  const codes = new Map([...redirects].map(([accountId, { code }]) => [code, accountId]));
  const lateTokens = shim.tokenAnswers.flatMap(({ asked, body, timeMs }) => {
    const accountId = codes.get(new URLSearchParams(asked).get("code") ?? "") ?? "";
    return timeMs > (destroyedMs.get(accountId) ?? Infinity) ? [String(JSON.parse(body).access_token)] : [];
  });
  for (const value of lateTokens) {
    expect(await vault.callApi({ headers: [{ name: "authorization", value: `Bearer ${value}` }] })).toBe(401);
  }
  // How many came too late is the machine's affair; what becomes of one that does is held by destroy.test.ts.
  const tooLate = outbox.length - accountCount;
  expect(provider.stats.familiesRevokedByReuse).toBe(0);
  await annotate(`${count("OK")} in time, ${count("ACCOUNT_REVOKED")} refused, ${tooLate} grants came too late`);
}, 60_000);
