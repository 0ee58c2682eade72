// Authorizations whose end meets a fault: the database is away, the account is destroyed at that moment, the caller leaves,
// the provider says strange things. A grant that the provider has given is stored or revoked, and never forgotten.
import { expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { succeedAuthorization } from "../../services/vault/authorizations.ts";
import { soon, until, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { asAccount, consent, newAccountId, connectAccount, rowOf } = vault;
const superuser = { ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 10_000 };

/** Holds the provider's token answers until `open` is called. */
function holdTokens() {
  const gate = Promise.withResolvers<void>();
  let held = false;
  vault.shim.misbehave(async (path) => {
    if (path !== "/token") return undefined;
    held = true;
    await gate.promise;
    return undefined;
  });
  return { reached: () => until(() => held), open: () => gate.resolve() };
}

const authorizationOf = (accountId: string) =>
  vault.db.selectFrom("authorizations").selectAll().where("accountId", "=", accountId).orderBy("createTime", "desc");
const revocationsOf = (accountId: string) =>
  vault.db.selectFrom("revocations").select("state").where("accountId", "=", accountId).execute();

/** Waits until so many statements of the vaults wait for a lock. */
async function waiting(count: number): Promise<void> {
  const admin = await openConnection(superuser);
  const query =
    "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and application_name = 'vault-test'";
  await until(async () => (await admin.query(query)).length >= count);
  await admin.end();
}

test("stores the grant although the database refuses it at first", async () => {
  const accountId = newAccountId();
  const { redirect } = await consent(accountId);
  const hold = holdTokens();
  const completing = asAccount.completeAuthorization(redirect, soon());
  await hold.reached();
  const admin = await openConnection(superuser);
  await admin.query("revoke insert on credentials from deputy_vault");
  hold.open();
  await until(() => vault.vault.lines.some((line) => line.includes("could not be stored yet")));
  await admin.query("grant insert on credentials to deputy_vault");
  await admin.end();
  expect((await completing).credential).toMatchObject({ accountId, state: CredentialState.ACTIVE });
  expect(await vault.callApi((await vault.lease(accountId)).lease)).toBe(200);
});

test("takes a grant whose commit was not acknowledged for stored, and does not revoke it", async () => {
  const accountId = newAccountId();
  const { redirect } = await consent(accountId);
  const hold = holdTokens();
  const completing = asAccount.completeAuthorization(redirect, soon());
  await hold.reached();
  // What the attempt itself would have left behind.
  const material = { $case: "grant", value: { accessToken: "as stored" } } as const;
  const subject = { projectId: "proj_1", environment: 1 as const, externalUserId: "user-1", accountId };
  await asAccount.storeCredential({ ...subject, appSlug: "sandbox", material }, soon());
  await succeedAuthorization(vault.db, await authorizationOf(accountId).executeTakeFirstOrThrow(), "Ada");
  hold.open();
  expect(await completing).toMatchObject({ credential: { accountId, generation: 1n }, identityName: "Ada" });
  expect(await revocationsOf(accountId)).toEqual([]);
});

test("a destroy that comes while the first credential is being stored destroys it", async () => {
  const accountId = newAccountId();
  const { redirect, stateDigest } = await consent(accountId);
  const hold = holdTokens();
  const completing = asAccount.completeAuthorization(redirect, soon());
  await hold.reached();
  // Both wait for the authorization's row: the store first, so that it commits, then the destroy.
  const admin = await openConnection(superuser);
  await admin.query("begin");
  await admin.query("select 1 from authorizations where state_digest = $1 for update", [Buffer.from(stateDigest)]);
  hold.open();
  await waiting(1);
  const destroying = vault.destroy(accountId);
  await waiting(2);
  await admin.query("commit");
  await admin.end();
  await completing.catch(() => undefined);
  expect(await destroying).toMatchObject([{ accountId, destroyTime: expect.any(Date) }]);
  expect(await rowOf(accountId)).toMatchObject({ state: "REVOKED", blob: null });
  await until(async () => (await revocationsOf(accountId)).every(({ state }) => state === "DONE"));
});

test("a destroy and the end of a reconnect take their rows in one order, and neither deadlocks", async () => {
  const accountId = await connectAccount();
  const { redirect } = await consent(accountId);
  const hold = holdTokens();
  const completing = asAccount.completeAuthorization(redirect, soon());
  await hold.reached();
  // The store holds the authorization and waits for the credential; the destroy must not hold that one already.
  const admin = await openConnection(superuser);
  await admin.query("begin");
  await admin.query("select 1 from credentials where account_id = $1 for update", [accountId]);
  const destroying = vault.destroy(accountId);
  await waiting(1);
  hold.open();
  await waiting(2);
  await admin.query("commit");
  await admin.end();
  await expect(completing).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  expect(await destroying).toMatchObject([{ accountId }]);
  expect(vault.vault.lines.filter((line) => line.includes("deadlock"))).toEqual([]);
  await until(async () => (await revocationsOf(accountId)).length === 2);
});

test("goes on with an exchange whose caller leaves, and is not idle before the grant is stored", async () => {
  const accountId = newAccountId();
  const { redirect } = await consent(accountId);
  const hold = holdTokens();
  const leaving = new AbortController();
  const completing = asAccount.completeAuthorization(redirect, { ...soon(), signal: leaving.signal });
  await hold.reached();
  leaving.abort();
  await expect(completing).rejects.toMatchObject({ code: "CANCELLED" });
  const idle = vault.vault.authorizer.idle();
  hold.open();
  await idle;
  expect(await rowOf(accountId)).toMatchObject({ state: "ACTIVE", generation: 1n });
});

test("leaves the authorizations of another environment alone", async () => {
  const accountId = newAccountId();
  const { redirect } = await consent(accountId);
  const request = { projectId: "proj_1", environment: 2 as const, accountIds: [accountId] };
  await asAccount.destroyCredentials(request, soon());
  expect((await asAccount.completeAuthorization(redirect, soon())).credential?.accountId).toBe(accountId);
});

test("keeps a grant whose scopes and user's name hold what the database cannot", async () => {
  const identity = vault.catalog.get("sandbox")?.oauth2?.identity;
  if (identity === undefined) throw new Error("the sandbox names its users");
  const { url } = identity;
  identity.url = `${vault.shim.url}/strange`;
  const { redirect } = await consent(newAccountId());
  const token = { access_token: "sandbox", scope: "read \u0000 wr\u0000ite" };
  const named = identity.name
    .split(".")
    .reduceRight<unknown>((value, name) => ({ [name]: value }), "Ada\u0000 Lovelace");
  vault.shim.misbehave((path) => ({ status: 200, body: JSON.stringify(path === "/token" ? token : named) }));
  const { credential, identityName } = await asAccount.completeAuthorization(redirect, soon());
  expect(credential?.scopes).toEqual(["read"]);
  expect(identityName).toBe("Ada Lovelace");
  identity.url = url;
});

test("connects an account whose identity request cannot even be formed, without a name", async () => {
  const identity = vault.catalog.get("sandbox")?.oauth2?.identity;
  if (identity === undefined) throw new Error("the sandbox names its users");
  const { url } = identity;
  const { redirect } = await consent(newAccountId());
  identity.url = "https://{{custom_fields.absent}}/me";
  expect(await asAccount.completeAuthorization(redirect, soon())).toMatchObject({
    credential: { state: CredentialState.ACTIVE },
    identityName: "",
  });
  identity.url = url;
});

test("gives all of an OAuth client's secrets together the time of one request", async () => {
  const hurried = await vault.startVault({ timeoutMs: 500, worker: false });
  await vault.putClient(["wrong 1", "wrong 2", "wrong 3", "wrong 4"]);
  const { redirect } = await consent(newAccountId());
  vault.shim.misbehave(async () => {
    await new Promise((resolve) => setTimeout(resolve, 300));
    return { status: 401, body: '{"error":"invalid_client"}' };
  });
  const before = vault.tokenRequests();
  const completing = (await hurried.as("account")).completeAuthorization(redirect, soon());
  await expect(completing).rejects.toMatchObject({ reason: "PROVIDER_ERROR" });
  expect(vault.tokenRequests() - before).toBe(2);
  await vault.putClient();
});
