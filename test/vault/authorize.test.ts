// Authorizations against the true sandbox provider: the whole flow, each refusal, and every way to come twice.
import { expect, test } from "vitest";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { claimAuthorization, getAuthorization } from "../../services/vault/authorizations.ts";
import { soon, until, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { asAccount, consent, newAccountId } = vault;

test("connects an account by the whole flow, names the user, and leases a token that the API takes", async () => {
  const accountId = newAccountId();
  const { redirect, back } = await consent(accountId);
  expect(back.href.startsWith("http://127.0.0.1:9/oauth/callback?")).toBe(true);
  const { credential, identityName } = await asAccount.completeAuthorization(redirect, soon());
  expect(identityName).toBe("Ada Lovelace");
  expect(credential).toMatchObject({ accountId, state: CredentialState.ACTIVE, generation: 1n });
  expect(credential?.scopes).toContain("offline_access");
  expect(credential?.expireTime?.getTime()).toBeGreaterThan(Date.now() + 3_500_000);
  expect(credential?.nextRefreshTime?.getTime()).toBeLessThan(Date.now() + 2_900_000);
  const { lease } = await vault.lease(accountId);
  expect(lease?.headers.map(({ name }) => name)).toEqual(["authorization"]);
  expect(await vault.callApi(lease)).toBe(200);
});

test("asks with PKCE S256 and a state that it keeps only as a digest", async () => {
  const request = { projectId: "proj_1", environment: 1 as const, externalUserId: "user-1", accountId: newAccountId() };
  const { authorizationUrl, stateDigest } = await asAccount.startAuthorization(
    { ...request, appSlug: "sandbox", oauthAppId: "oa_1", redirectUri: "http://127.0.0.1:9/oauth/callback" },
    soon(),
  );
  const { searchParams } = new URL(authorizationUrl);
  expect(searchParams.get("code_challenge_method")).toBe("S256");
  const state = searchParams.get("state") ?? "";
  expect(Buffer.from(state, "base64url")).toHaveLength(32);
  expect(stateDigest).toHaveLength(32);
  const rows = await vault.db.selectFrom("authorizations").selectAll().execute();
  expect(JSON.stringify(rows, (_key, value) => (typeof value === "bigint" ? `${value}` : value))).not.toContain(state);
});

test("exchanges a code once when the redirect comes five times at once, and gives all the same account", async () => {
  const { redirect } = await consent(newAccountId());
  const before = vault.tokenRequests();
  const answers = await Promise.all([1, 2, 3, 4, 5].map(() => asAccount.completeAuthorization(redirect, soon())));
  expect(new Set(answers.map(({ credential }) => credential?.accountId)).size).toBe(1);
  expect((await asAccount.completeAuthorization(redirect, soon())).identityName).toBe("Ada Lovelace");
  expect(vault.tokenRequests() - before).toBe(1);
});

test("gives the right to exchange a code to one of those who ask at the same moment", async () => {
  const { stateDigest } = await consent(newAccountId());
  const row = await getAuthorization(vault.db, Buffer.from(stateDigest));
  const claims = await Promise.all([1, 2, 3, 4].map(() => claimAuthorization(vault.db, row)));
  expect(claims.filter((claimed) => claimed)).toHaveLength(1);
});

test("says that the user refused, again and again, and exchanges nothing", async () => {
  const { redirect } = await consent(newAccountId(), "deny");
  const before = vault.tokenRequests();
  for (let repeat = 0; repeat < 2; repeat += 1) {
    await expect(asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({
      code: "FAILED_PRECONDITION",
      reason: "ACCESS_DENIED",
    });
  }
  // A code that turns up later for the refused state is not looked at.
  await expect(asAccount.completeAuthorization({ ...redirect, error: "", code: "c" }, soon())).rejects.toMatchObject({
    reason: "ACCESS_DENIED",
  });
  expect(vault.tokenRequests()).toBe(before);
});

test.each(["https://evil.example", ""])("refuses a redirect whose iss is %j, and spends no code", async (issuer) => {
  const accountId = newAccountId();
  const { redirect } = await consent(accountId);
  const before = vault.tokenRequests();
  await expect(asAccount.completeAuthorization({ ...redirect, issuer }, soon())).rejects.toMatchObject({
    reason: "ISSUER_MISMATCH",
  });
  expect(vault.tokenRequests()).toBe(before);
  await expect(vault.lease(accountId)).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("refuses a state that nobody began", async () => {
  const made = asAccount.completeAuthorization({ state: "x".repeat(43), code: "c" }, soon());
  await expect(made).rejects.toMatchObject({ code: "NOT_FOUND", reason: "AUTHORIZATION_NOT_FOUND" });
});

test("refuses an authorization that is older than ten minutes", async () => {
  const { redirect, stateDigest } = await consent(newAccountId());
  await vault.db
    .updateTable("authorizations")
    .set({ expireTime: new Date(Date.now() - 1_000) })
    .where("stateDigest", "=", Buffer.from(stateDigest))
    .execute();
  await expect(asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({
    reason: "AUTHORIZATION_EXPIRED",
  });
});

test("refuses a code that the provider does not know, for good", async () => {
  const { redirect } = await consent(newAccountId());
  await expect(asAccount.completeAuthorization({ ...redirect, code: "wrong" }, soon())).rejects.toMatchObject({
    reason: "CODE_REJECTED",
  });
  await expect(asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({ reason: "CODE_REJECTED" });
});

test("takes 200 without a token for no success", async () => {
  const { redirect } = await consent(newAccountId());
  vault.shim.misbehave(() => ({ status: 200, body: '{"ok":true}' }));
  await expect(asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({ reason: "PROVIDER_ERROR" });
});

test("lets a second try succeed when nothing could be sent to the provider", async () => {
  const { redirect, stateDigest } = await consent(newAccountId());
  const app = vault.catalog.get("sandbox");
  if (app?.oauth2 === undefined) throw new Error("the sandbox connects by OAuth");
  const { url } = app.oauth2.token;
  app.oauth2.token.url = "https://localhost:1/token";
  await expect(asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({
    code: "UNAVAILABLE",
    reason: "PROVIDER_UNREACHABLE",
  });
  app.oauth2.token.url = url;
  expect((await asAccount.completeAuthorization(redirect, soon())).identityName).toBe("Ada Lovelace");
  expect(stateDigest).toHaveLength(32);
});

test("tries an OAuth client's secrets in their order", async () => {
  await vault.putClient(["an older secret", vault.clientSecret]);
  const { redirect } = await consent(newAccountId());
  expect((await asAccount.completeAuthorization(redirect, soon())).credential?.generation).toBe(1n);
  await vault.putClient(["wrong"]);
  const second = await consent(newAccountId());
  await expect(asAccount.completeAuthorization(second.redirect, soon())).rejects.toMatchObject({
    reason: "OAUTH_CLIENT_REJECTED",
  });
  await vault.putClient();
});

test("reconnects an account in its place, under a new data key and the next generation", async () => {
  const accountId = await vault.connectAccount();
  const before = await vault.rowOf(accountId);
  const { redirect } = await consent(accountId);
  const { credential } = await asAccount.completeAuthorization(redirect, soon());
  expect(credential).toMatchObject({ accountId, generation: 2n, createTime: before.createTime });
  expect((await vault.rowOf(accountId)).dataKeyId).not.toBe(before.dataKeyId);
  expect(await vault.callApi((await vault.lease(accountId)).lease)).toBe(200);
});

test("gives a destroyed account no new credential when its user comes back from the provider", async () => {
  const accountId = await vault.connectAccount();
  const { redirect } = await consent(accountId);
  await vault.destroy(accountId);
  await expect(asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  await expect(vault.lease(accountId)).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
});

test("makes no credential for an account that was destroyed before it had one, and the provider forgets the grant", async () => {
  const accountId = newAccountId();
  const { redirect } = await consent(accountId);
  const gate = Promise.withResolvers<void>();
  let held = false;
  vault.shim.misbehave(async (path) => {
    if (path !== "/token") return undefined;
    held = true;
    await gate.promise;
    return undefined;
  });
  const completing = asAccount.completeAuthorization(redirect, soon());
  await until(() => held);
  expect(await vault.destroy(accountId)).toEqual([]);
  gate.resolve();
  await expect(completing).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  await expect(vault.lease(accountId)).rejects.toMatchObject({ code: "NOT_FOUND" });
  await until(async () => {
    const rows = await vault.db.selectFrom("revocations").select("state").where("accountId", "=", accountId).execute();
    return rows.length === 1 && rows[0]?.state === "DONE";
  });
});

test("refuses an app without OAuth, an OAuth app that is absent, and one that was destroyed", async () => {
  const request = { projectId: "proj_1", environment: 1 as const, externalUserId: "user-1", accountId: newAccountId() };
  const start = (appSlug: string, oauthAppId: string) =>
    asAccount.startAuthorization({ ...request, appSlug, oauthAppId, redirectUri: "http://127.0.0.1:9/" }, soon());
  await expect(start("sandbox_header_key", "oa_1")).rejects.toMatchObject({ reason: "APP_HAS_NO_OAUTH" });
  await expect(start("absent", "oa_1")).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  await expect(start("sandbox", "oa_absent")).rejects.toMatchObject({ reason: "OAUTH_APP_NOT_FOUND" });
  const client = { projectId: "proj_1", oauthAppId: "oa_2", appSlug: "sandbox", clientId: "c", clientSecrets: ["s"] };
  await asAccount.putOauthClient(client, soon());
  await start("sandbox", "oa_2");
  await asAccount.destroyOauthClient(client, soon());
  await expect(start("sandbox", "oa_2")).rejects.toMatchObject({ reason: "OAUTH_APP_NOT_FOUND" });
  const row = await vault.db.selectFrom("oauthClients").selectAll().where("oauthAppId", "=", "oa_2").executeTakeFirst();
  expect(row).toMatchObject({ blob: null, wrappedDataKey: null });
});
