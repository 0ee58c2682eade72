// The refresh against the true sandbox provider with strict rotation, by two vaults on one database: exactly one token call
// whoever asks, and every way in which a provider fails.
import { afterEach, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { accountLocks } from "../../services/vault/account-locks.ts";
import { soon, tokenWith, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const second = await vault.startVault({ worker: false });
const secondProxy = await second.as("proxy");
const [first, other] = [vault.vault.refresher, second.refresher];
const { connectAccount, endTokenIn, lease, rowOf, shim, provider } = vault;
const successes = () => provider.stats.tokenRequests.refresh_token?.success ?? 0;
const failing = { status: 503, body: '{"error":"temporarily_unavailable"}' };

afterEach(() => expect(provider.stats.familiesRevokedByReuse).toBe(0));

/** Undoes the pause after a failure, as if its time had come. */
async function endBackoff(accountId: string): Promise<void> {
  await vault.db.updateTable("credentials").set({ retryTime: null }).where("accountId", "=", accountId).execute();
}

test("refreshes once for a hundred callers of two vaults, and every one gets a token that works", async () => {
  const accountId = await connectAccount();
  await endTokenIn(accountId, -1);
  const [sent, before] = [vault.tokenRequests(), successes()];
  const callers = Array.from({ length: 100 }, (_, index) => (index % 2 === 0 ? vault.asProxy : secondProxy));
  const leases = await Promise.all(callers.map((client) => vault.leaseBy(client, accountId)));
  expect(vault.tokenRequests() - sent).toBe(1);
  expect(successes() - before).toBe(1);
  expect(new Set(leases.map((answer) => answer.lease?.headers[0]?.value)).size).toBe(1);
  expect(leases.every((answer) => answer.lease?.generation === 2n)).toBe(true);
  expect(leases.some((answer) => answer.lease?.refreshed)).toBe(true);
  expect(await vault.callApi(leases[99]?.lease)).toBe(200);
  // The grant lives: it can be refreshed again.
  await endTokenIn(accountId, -1);
  expect((await lease(accountId)).lease?.generation).toBe(3n);
});

test("leases without a refresh while the token is good, and refreshes when it ends within seconds", async () => {
  const accountId = await connectAccount();
  const sent = vault.tokenRequests();
  const { lease: early } = await lease(accountId);
  expect(early).toMatchObject({ generation: 1n, refreshed: false });
  expect(vault.tokenRequests()).toBe(sent);
  await endTokenIn(accountId, 3);
  expect((await lease(accountId)).lease).toMatchObject({ generation: 2n, refreshed: true });
});

test("never leases beyond the token's end, nor for more than ten seconds", async () => {
  const accountId = await connectAccount();
  await endTokenIn(accountId, 7);
  const { expireTime } = await rowOf(accountId);
  expect((await lease(accountId)).lease?.leaseExpireTime).toEqual(expireTime);
  await endTokenIn(accountId, 60);
  const { lease: later } = await lease(accountId);
  expect(later?.leaseExpireTime?.getTime()).toBeLessThanOrEqual(Date.now() + 10_100);
  expect(later?.leaseExpireTime?.getTime()).toBeGreaterThan(Date.now() + 8_000);
});

test("leases the old token while the provider fails, says REFRESH_FAILING once it has ended, and recovers", async () => {
  const accountId = await connectAccount();
  shim.misbehave((path) => (path === "/token" ? failing : undefined));
  await endTokenIn(accountId, 4);
  const { lease: old } = await lease(accountId);
  expect(old).toMatchObject({ generation: 1n, refreshed: false });
  expect(await vault.callApi(old)).toBe(200);
  expect(await vault.credential(accountId)).toMatchObject({
    state: CredentialState.ACTIVE,
    stateReason: "PROVIDER_FAILING",
  });
  await endTokenIn(accountId, -1);
  const refused = { code: "UNAVAILABLE", reason: "REFRESH_FAILING", metadata: { state_reason: "PROVIDER_FAILING" } };
  await expect(lease(accountId)).rejects.toMatchObject(refused);
  // The pause after the failure: the provider is not asked for every caller.
  const sent = vault.tokenRequests();
  await Promise.all([1, 2, 3].map(() => expect(lease(accountId)).rejects.toMatchObject(refused)));
  expect(vault.tokenRequests()).toBe(sent);
  shim.misbehave(() => undefined);
  await endBackoff(accountId);
  expect((await lease(accountId)).lease).toMatchObject({ generation: 2n });
  expect(await vault.credential(accountId)).toMatchObject({ stateReason: "" });
});

test("waits as long as the provider asks for", async () => {
  const accountId = await connectAccount();
  shim.misbehave(() => ({ status: 429, body: "{}", headers: { "retry-after": "120" } }));
  await endTokenIn(accountId, -1);
  await expect(lease(accountId)).rejects.toMatchObject({ reason: "REFRESH_FAILING" });
  expect((await rowOf(accountId)).retryTime?.getTime()).toBeGreaterThan(Date.now() + 110_000);
});

test("needs the user when the provider says invalid_grant, whatever the status", async () => {
  for (const status of [400, 200]) {
    const accountId = await connectAccount();
    shim.misbehave(() => ({ status, body: '{"error":"invalid_grant"}' }));
    await endTokenIn(accountId, -1);
    const refused = { code: "FAILED_PRECONDITION", reason: "NEEDS_REAUTH" };
    await expect(lease(accountId)).rejects.toMatchObject(refused);
    shim.misbehave(() => undefined);
    const sent = vault.tokenRequests();
    await expect(lease(accountId)).rejects.toMatchObject(refused);
    expect(vault.tokenRequests()).toBe(sent);
    expect(await vault.credential(accountId)).toMatchObject({
      state: CredentialState.NEEDS_REAUTH,
      stateReason: "INVALID_GRANT",
    });
    const { redirect } = await vault.consent(accountId);
    await vault.asAccount.completeAuthorization(redirect, soon());
    expect(await vault.callApi((await lease(accountId)).lease)).toBe(200);
  }
});

test("takes an invalid_grant for a race when the account was connected anew meanwhile", async () => {
  const accountId = await connectAccount();
  const { redirect } = await vault.consent(accountId);
  const gate = Promise.withResolvers<void>();
  let held = false;
  shim.misbehave(async () => {
    if (held) return undefined;
    held = true;
    await gate.promise;
    return { status: 400, body: '{"error":"invalid_grant"}' };
  });
  await endTokenIn(accountId, -1);
  const waiting = lease(accountId);
  await until(() => held);
  await vault.asAccount.completeAuthorization(redirect, soon());
  gate.resolve();
  expect((await waiting).lease?.generation).toBe(2n);
  expect(await vault.credential(accountId)).toMatchObject({ state: CredentialState.ACTIVE });
});

test("marks no account dead when the OAuth client is refused", async () => {
  const accountId = await connectAccount();
  await vault.putClient(["wrong"]);
  await endTokenIn(accountId, -1);
  await expect(lease(accountId)).rejects.toMatchObject({ code: "UNAVAILABLE", reason: "REFRESH_FAILING" });
  expect(await vault.credential(accountId)).toMatchObject({
    state: CredentialState.ACTIVE,
    stateReason: "OAUTH_CLIENT_REJECTED",
  });
  await vault.putClient();
  await endBackoff(accountId);
  expect((await lease(accountId)).lease?.generation).toBe(2n);
});

test("says UNKNOWN when the answer is lost, serves the old token, and learns that the grant is gone", async () => {
  const accountId = await connectAccount();
  shim.misbehave((path) => (path === "/token" ? "lose answer" : undefined));
  await endTokenIn(accountId, 4);
  expect((await lease(accountId)).lease).toMatchObject({ generation: 1n });
  expect(await vault.credential(accountId)).toMatchObject({ state: CredentialState.UNKNOWN });
  await endTokenIn(accountId, -1);
  await expect(lease(accountId)).rejects.toMatchObject({ reason: "REFRESH_FAILING" });
  // The shim answers for the provider here, so that the one reuse of this test is not counted as a fault of the others.
  shim.misbehave(() => ({ status: 400, body: '{"error":"invalid_grant"}' }));
  await endBackoff(accountId);
  await expect(lease(accountId)).rejects.toMatchObject({ reason: "NEEDS_REAUTH" });
});

test("recovers from UNKNOWN when the request never reached the provider", async () => {
  const accountId = await connectAccount();
  shim.misbehave((path) => (path === "/token" ? "break" : undefined));
  await endTokenIn(accountId, -1);
  await expect(lease(accountId)).rejects.toMatchObject({ reason: "REFRESH_FAILING" });
  shim.misbehave(() => undefined);
  await endBackoff(accountId);
  expect((await lease(accountId)).lease).toMatchObject({ generation: 2n });
  expect(await vault.credential(accountId)).toMatchObject({ state: CredentialState.ACTIVE, stateReason: "" });
});

test("goes on when its only caller leaves, and stores what came", async () => {
  const accountId = await connectAccount();
  const gate = Promise.withResolvers<void>();
  let held = false;
  shim.misbehave(async () => {
    held = true;
    await gate.promise;
    return undefined;
  });
  await endTokenIn(accountId, -1);
  const leaving = new AbortController();
  const call = { ...soon(await tokenWith()), signal: leaving.signal };
  const waiting = vault.asProxy.leaseInjection({ ...whose, accountId }, call);
  await until(() => held);
  leaving.abort();
  await expect(waiting).rejects.toMatchObject({ code: "CANCELLED" });
  gate.resolve();
  await until(async () => (await rowOf(accountId)).generation === 2n);
  expect(await vault.callApi((await lease(accountId)).lease)).toBe(200);
});

test("ends a caller's wait at its deadline and not before the refresh is stored", async () => {
  const accountId = await connectAccount();
  const gate = Promise.withResolvers<void>();
  shim.misbehave(async () => {
    await gate.promise;
    return undefined;
  });
  await endTokenIn(accountId, -1);
  const call = { deadlineMs: Date.now() + 400, token: await tokenWith() };
  await expect(vault.asProxy.leaseInjection({ ...whose, accountId }, call)).rejects.toMatchObject({
    code: "DEADLINE_EXCEEDED",
  });
  gate.resolve();
  await until(async () => (await rowOf(accountId)).generation === 2n);
});

test("a vault that meets a lock waits for the other's result and sends nothing", async () => {
  const accountId = await connectAccount();
  const row = await rowOf(accountId);
  const gate = Promise.withResolvers<void>();
  let held = 0;
  shim.misbehave(async () => {
    held += 1;
    await gate.promise;
    return undefined;
  });
  const winner = first.refresh(row);
  await until(() => held === 1);
  const loser = other.refresh(row);
  setTimeout(() => gate.resolve(), 300);
  expect(await Promise.all([winner, loser])).toEqual([{ kind: "refreshed" }, { kind: "current" }]);
  expect(held).toBe(1);
});

test("sends nothing while somebody holds the account's lock: leases the token that is valid, and refreshes when it is free", async () => {
  const accountId = await connectAccount();
  const holder = await openConnection({ ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 5_000 });
  await holder.query("select pg_advisory_lock(hashtextextended($1, 0))", [`cred:proj_1:${accountId}`]);
  const sent = vault.tokenRequests();
  await endTokenIn(accountId, 4);
  expect((await lease(accountId)).lease).toMatchObject({ generation: 1n, refreshed: false });
  await endTokenIn(accountId, -1);
  const call = { deadlineMs: Date.now() + 600, token: await tokenWith() };
  await expect(vault.asProxy.leaseInjection({ ...whose, accountId }, call)).rejects.toMatchObject({
    code: "DEADLINE_EXCEEDED",
  });
  expect(vault.tokenRequests()).toBe(sent);
  expect((await rowOf(accountId)).intentId).toBeNull();
  await holder.end();
  expect((await lease(accountId)).lease).toMatchObject({ generation: 2n, refreshed: true });
  expect(vault.tokenRequests() - sent).toBe(1);
});

test("sends nothing while another process may still have a call under way, though its lock is gone", async () => {
  const accountId = await connectAccount();
  await vault.db
    .updateTable("credentials")
    .set({ intentId: "int_x", intentBy: "int_gone", intentTime: new Date() })
    .where("accountId", "=", accountId)
    .execute();
  const sent = vault.tokenRequests();
  await endTokenIn(accountId, -1);
  const call = { deadlineMs: Date.now() + 600, token: await tokenWith() };
  await expect(vault.asProxy.leaseInjection({ ...whose, accountId }, call)).rejects.toMatchObject({
    code: "DEADLINE_EXCEEDED",
  });
  expect(vault.tokenRequests()).toBe(sent);
  // An intent older than any call belongs to a process that is gone.
  await vault.db
    .updateTable("credentials")
    .set({ intentTime: new Date(Date.now() - 31_000) })
    .where("accountId", "=", accountId)
    .execute();
  expect((await lease(accountId)).lease?.generation).toBe(2n);
  expect(vault.tokenRequests() - sent).toBe(1);
});

test("refreshes on demand, and not when the caller's generation is old", async () => {
  const accountId = await connectAccount();
  const refresh = (generation: bigint) =>
    vault.asAccount.refreshCredential({ projectId: "proj_1", environment: 1, accountId, generation }, soon());
  expect(await refresh(0n)).toMatchObject({ refreshed: true, credential: { generation: 2n } });
  const sent = vault.tokenRequests();
  expect(await refresh(1n)).toMatchObject({ refreshed: false, credential: { generation: 2n } });
  expect(vault.tokenRequests()).toBe(sent);
  expect(await refresh(2n)).toMatchObject({ refreshed: true, credential: { generation: 3n } });
});

test("needs the user when a token ends that came without a refresh token", async () => {
  const accountId = vault.newAccountId();
  const grant = { accessToken: "imported-access-token", expireTime: new Date(Date.now() + 60_000) };
  const request = { ...whose, accountId, appSlug: "sandbox", material: { $case: "grant", value: grant } as const };
  await vault.asAccount.storeCredential(request, soon());
  expect((await lease(accountId)).lease?.headers[0]?.value).toBe("Bearer imported-access-token");
  await endTokenIn(accountId, -1);
  await expect(lease(accountId)).rejects.toMatchObject({ reason: "NEEDS_REAUTH" });
  expect(await vault.credential(accountId)).toMatchObject({ stateReason: "NO_REFRESH_TOKEN" });
});

test("spends an imported grant's refresh token when its access token has ended already", async () => {
  const accountId = vault.newAccountId();
  const material = {
    $case: "grant",
    value: { accessToken: "ended", refreshToken: "not known", expireTime: new Date(0) },
  };
  const request = { ...whose, accountId, appSlug: "sandbox", oauthAppId: "oa_1", material: material as never };
  await vault.asAccount.storeCredential(request, soon());
  await expect(lease(accountId)).rejects.toMatchObject({ reason: "NEEDS_REAUTH" });
});

test("counts an imported grant's life by the database's clock, whatever the process's says", async () => {
  const accountId = vault.newAccountId();
  const expireTime = new Date(Date.now() + 3_600_000);
  const grant = { accessToken: "imported-access-token", expireTime };
  const material = { $case: "grant", value: grant } as const;
  const { now } = Date;
  try {
    Date.now = () => now() + 1_800_000;
    await vault.asAccount.storeCredential({ ...whose, accountId, appSlug: "sandbox", material }, soon());
  } finally {
    Date.now = now;
  }
  const stored = (await rowOf(accountId)).expireTime?.getTime() ?? 0;
  expect(Math.abs(stored - expireTime.getTime())).toBeLessThan(5_000);
});

test("refreshes sixty different accounts at once over ten connections", async () => {
  const accountIds = await Promise.all(
    Array.from({ length: 60 }, async () => {
      const accountId = vault.newAccountId();
      const value = { accessToken: "ended", refreshToken: `of ${accountId}`, expireTime: new Date(0) };
      const request = { ...whose, accountId, appSlug: "sandbox", oauthAppId: "oa_1" };
      await vault.asAccount.storeCredential({ ...request, material: { $case: "grant", value } }, soon());
      return accountId;
    }),
  );
  let atWork = 0;
  const { promise: moreThanConnections, resolve } = Promise.withResolvers<void>();
  shim.misbehave(async () => {
    if (++atWork > 10) resolve();
    // No call to a provider holds a connection: all of them would be waited for in vain otherwise.
    await moreThanConnections;
    return { status: 200, body: '{"access_token":"fresh","refresh_token":"next","expires_in":3600}' };
  });
  const sent = vault.tokenRequests();
  const leases = await Promise.all(accountIds.map((accountId) => lease(accountId)));
  expect(leases.every((answer) => answer.lease?.headers[0]?.value === "Bearer fresh")).toBe(true);
  expect(vault.tokenRequests() - sent).toBe(60);
});

test("takes locks again after their connection was lost", async () => {
  const access = { ...vault.database.runtime, applicationName: "vault-locks-test", statementTimeoutMs: 5_000 };
  const [mine, theirs] = [accountLocks(access), accountLocks({ ...access, applicationName: "vault-locks-other" })];
  const key = { projectId: "proj_1", accountId: "apn_locked" };
  const unlock = await mine.tryLock(key);
  expect(await theirs.tryLock(key)).toBeUndefined();
  const admin = await openConnection({ ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 5_000 });
  await admin.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'vault-locks-test'",
  );
  await admin.end();
  await until(async () => {
    const taken = await theirs.tryLock(key);
    await taken?.();
    return taken !== undefined;
  });
  await unlock?.();
  const again = await mine.tryLock(key);
  expect(again).toBeTypeOf("function");
  await Promise.all([mine.end(), theirs.end()]);
});
