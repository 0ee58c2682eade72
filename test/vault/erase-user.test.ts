// Erasing a user from the vault: the id is gone from every row but those of the audit, tombstones still answer, what is sealed
// still opens, and nothing that is on its way brings the user back.
import { sql } from "kysely";
import { expect, test } from "vitest";
import { countPendingRevocations } from "../../services/vault/revocations.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { connectAccount, destroy, lease, rowOf, shim, db, provider } = vault;

const pseudonym = "erased_0123";
const erase = (more = {}) => vault.asAccount.eraseUser({ ...whose, pseudonym, ...more }, soon());
const revocationsOf = (accountId: string) =>
  db.selectFrom("revocations").selectAll().where("accountId", "=", accountId).execute();

/** In how many rows of each table the user's id stands. */
async function mentions(externalUserId = whose.externalUserId) {
  const counts: Record<string, number> = {};
  for (const table of ["credentials", "revocations", "authorizations"] as const) {
    const { rows } = await sql<{ count: bigint }>`
      select count(*) from ${sql.table(table)} as one where one::text like ${`%${externalUserId}%`}`.execute(db);
    counts[table] = Number(rows[0]?.count);
  }
  return counts;
}

const nowhere = { credentials: 0, revocations: 0, authorizations: 0 };

test("puts the pseudonym everywhere but in the audit, and the tombstone still has a receipt", async () => {
  const accountId = await connectAccount();
  const [before] = await destroy(accountId);
  await until(async () => (await revocationsOf(accountId))[0]?.state === "DONE");
  expect(await mentions()).toMatchObject({ credentials: 1, revocations: 1, authorizations: 1 });
  expect((await rowOf(accountId)).identityDigest).not.toBeNull();
  expect(await erase()).toEqual({ destroyed: 0 });
  expect(await mentions()).toEqual(nowhere);
  expect(await rowOf(accountId)).toMatchObject({ externalUserId: pseudonym, identityDigest: null, state: "REVOKED" });
  expect((await revocationsOf(accountId))[0]).toMatchObject({ externalUserId: pseudonym, identityDigest: null });
  const authorizations = await db.selectFrom("authorizations").selectAll().where("accountId", "=", accountId).execute();
  expect(authorizations).toMatchObject([{ externalUserId: pseudonym, identityName: "", state: "SUCCEEDED" }]);
  const [after] = await destroy(accountId);
  expect(after).toMatchObject({ accountId, destroyTime: before?.destroyTime, externalUserId: pseudonym });
  const entries = await db
    .selectFrom("auditEntries")
    .selectAll()
    .where("accountId", "=", accountId)
    .orderBy("id")
    .execute();
  expect(entries.find(({ action }) => action === "credential.destroyed")?.externalUserId).toBe(whose.externalUserId);
  const erasures = () =>
    db.selectFrom("auditEntries").selectAll().where("action", "=", "user.erased").orderBy("id").execute();
  expect(await erasures()).toMatchObject([{ externalUserId: pseudonym, service: "account", projectId: "proj_1" }]);
  await erase();
  expect(await erasures()).toHaveLength(1);
});

test("destroys what no account names, and refuses its leases", async () => {
  const accountId = await connectAccount();
  expect((await lease(accountId)).lease?.generation).toBe(1n);
  expect(await erase()).toEqual({ destroyed: 1 });
  expect(await rowOf(accountId)).toMatchObject({ state: "REVOKED", blob: null, externalUserId: pseudonym });
  const [absent, revoked] = [vault.asProxy, vault.asProxy].map((proxy, index) =>
    proxy
      .leaseInjection(
        { ...whose, externalUserId: index === 0 ? whose.externalUserId : "", accountId },
        soon(vault.token),
      )
      .catch((error) => error),
  );
  expect(await absent).toMatchObject({ code: "NOT_FOUND" });
  expect(await revoked).toMatchObject({ reason: "ACCOUNT_REVOKED" });
});

test("seals a revocation anew that the provider has not confirmed, and it is told all the same", async () => {
  // Those of the tests before are still to be told, for calls to providers stand back for a moment.
  await until(async () => (await countPendingRevocations(db)).count === 0n);
  const accountId = await connectAccount();
  const { lease: before } = await lease(accountId);
  const gate = Promise.withResolvers<void>();
  let failed = 0;
  shim.misbehave(async (path) => {
    if (path !== "/token/revocation" || failed > 0) return undefined;
    failed += 1;
    await gate.promise;
    return { status: 503, body: "{}" };
  });
  await destroy(accountId);
  await until(() => failed === 1);
  const [sealed] = await revocationsOf(accountId);
  expect(sealed).toMatchObject({ state: "PENDING", externalUserId: whose.externalUserId });
  await erase();
  const [anew] = await revocationsOf(accountId);
  expect(anew).toMatchObject({ state: "PENDING", externalUserId: pseudonym });
  expect(anew?.blob?.equals(sealed?.blob ?? Buffer.alloc(0))).toBe(false);
  expect(await mentions()).toEqual(nowhere);
  gate.resolve();
  await until(async () => (await revocationsOf(accountId))[0]?.state === "DONE", 15_000);
  expect(await vault.callApi(before)).toBe(401);
});

test("gives up a revocation that does not open any more, instead of keeping the user's id with it", async () => {
  const accountId = await connectAccount();
  const gate = Promise.withResolvers<void>();
  shim.misbehave(async () => {
    await gate.promise;
    return { status: 503, body: "{}" };
  });
  await destroy(accountId);
  await db
    .updateTable("revocations")
    .set({ blob: Buffer.alloc(200, 1) })
    .where("accountId", "=", accountId)
    .execute();
  await erase();
  const failed = { state: "FAILED", lastError: "WRONG_KEY", blob: null, externalUserId: pseudonym };
  expect(await revocationsOf(accountId)).toMatchObject([failed]);
  expect(await mentions()).toEqual(nowhere);
  gate.resolve();
});

test("keeps nothing of a code that the user brings back afterwards, and nothing of one that is being exchanged", async () => {
  const later = vault.newAccountId();
  const { redirect } = await vault.consent(later);
  await erase();
  await expect(vault.asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({
    reason: "ACCOUNT_REVOKED",
  });
  const during = vault.newAccountId();
  const inFlight = await vault.consent(during);
  const held = shim.hold("/token");
  const completing = vault.asAccount.completeAuthorization(inFlight.redirect, soon());
  completing.catch(() => undefined);
  await held.arrived;
  const told = provider.stats.revocationRequests;
  await erase();
  held.letGo();
  await expect(completing).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  for (const accountId of [later, during]) {
    expect(await db.selectFrom("credentials").selectAll().where("accountId", "=", accountId).execute()).toEqual([]);
  }
  await until(() => provider.stats.revocationRequests > told);
  expect(await mentions()).toEqual(nowhere);
});

test("has what a refresh brings too late revoked, under the pseudonym", async () => {
  const accountId = await connectAccount();
  const held = shim.hold("/token");
  const refreshing = vault.vault.refresher.refresh(await rowOf(accountId)).catch(() => undefined);
  await held.arrived;
  await erase();
  held.letGo();
  await refreshing;
  await until(async () => (await revocationsOf(accountId)).length === 2);
  await until(async () => (await revocationsOf(accountId)).every(({ state }) => state === "DONE"));
  expect(await mentions()).toEqual(nowhere);
});

test("leaves other users, environments and projects as they are, and is for the account service alone", async () => {
  const accountId = await connectAccount();
  await erase({ externalUserId: "user-2" });
  await erase({ projectId: "proj_2" });
  await erase({ environment: 2 });
  expect((await lease(accountId)).lease?.generation).toBe(1n);
  expect((await mentions()).credentials).toBe(1);
  for (const service of ["proxy", "operator", "gateway"] as const) {
    const client = await vault.vault.as(service);
    await expect(client.eraseUser({ ...whose, pseudonym }, soon())).rejects.toMatchObject({
      code: "PERMISSION_DENIED",
    });
  }
});
