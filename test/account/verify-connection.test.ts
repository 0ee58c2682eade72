// Session fixation, as an attack, and the verification against it: an attacker has a link of his own opened in a victim's
// browser. With a token that requires verification his user gets no account, whatever the victim agrees to.
import { expect, test } from "vitest";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { Credential } from "#proto/deputy/vault/v1/credentials.ts";
import { sweepConnecting } from "../../services/account/sweep-connecting.ts";
import {
  binding,
  call,
  development,
  keyFields,
  newConnectToken,
  newKeyAccount,
  newOauthApp,
  newProject,
  production,
  startAccount,
} from "./harness.ts";

const account = await startAccount();
const { api, gateway, vault, vaultClient, db, clock } = account;
const acme = await newProject(account);
await newOauthApp(account, acme.projectId);

const verified = { requireVerification: true, successRedirectUri: "https://app.acme-crm.com/connected?x=1" };
const lastAsked = (method: string) =>
  ({ ...vault.callsOf(method).at(-1)?.request }) as Readonly<Record<string, string>>;
const stateOf = (url: string) => new URL(url).searchParams.get("state") ?? "";

/** A browser follows a user's link and agrees at the provider; gives what it brings to the product. */
async function agree(externalUserId: string, more = {}) {
  const token = await newConnectToken(account, acme.token, { externalUserId, ...verified, ...more });
  const started = await api.startConnection({ appSlug: "sandbox", browserBinding: binding }, call(token));
  const redirect = { state: stateOf(started.authorizationUrl), code: "the-code", browserBinding: binding };
  const ended = await gateway.completeConnection(redirect, call());
  const brought = ended.redirectUri === "" ? new URLSearchParams() : new URL(ended.redirectUri).searchParams;
  const { accountId } = lastAsked("startAuthorization");
  return { token, redirect, ended, brought, ...started, accountId: accountId ?? "" };
}

/** What the product's backend does for whoever is signed in in the browser that came. */
const verify = (signedIn: string, brought: URLSearchParams, more = {}) =>
  api.verifyConnection(
    {
      environment: development,
      externalUserId: signedIn,
      connectionId: brought.get("connection_id") ?? "",
      verifier: brought.get("verifier") ?? "",
      ...more,
    },
    call(acme.token),
  );
const accountsOf = async (externalUserId: string) =>
  (await api.listAccounts({ environment: development, externalUserId }, call(acme.token))).totalSize;

test("a link of Mallory's in Victor's browser gives Mallory no account, and Victor none of Mallory's", async () => {
  const { brought, accountId, token, connectionId } = await agree("mallory");
  expect(brought.get("verifier")).toMatch(/^[\w-]{43}$/);
  // Victor is signed in to the product; its backend verifies for Victor, whom the link was not for.
  await expect(verify("victor", brought)).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such connection." });
  // Mallory, who made the link and holds its token, has no verifier: neither guessing nor asking helps.
  const guess = new URLSearchParams({ connection_id: connectionId, verifier: "A".repeat(43) });
  await expect(verify("mallory", guess)).rejects.toMatchObject({ reason: "VERIFIER_MISMATCH" });
  const seen = await api.getConnection({ connectionId }, call(token));
  expect(seen.connection).toMatchObject({ state: ConnectionState.AWAITING_VERIFICATION, accountId: "" });
  expect(JSON.stringify(seen)).not.toContain(brought.get("verifier"));
  const self = { connectionId, verifier: brought.get("verifier") ?? "" };
  await expect(api.verifyConnection(self, call(token))).rejects.toMatchObject({ reason: "CONNECT_TOKEN_NOT_ALLOWED" });
  // Nothing can be done with what waits.
  const get = api.getAccount({ environment: development, accountId }, call(acme.token));
  await expect(get).rejects.toMatchObject({ code: "NOT_FOUND" });
  expect([await accountsOf("mallory"), await accountsOf("victor")]).toEqual([0, 0]);

  // Nobody verifies: the credential is destroyed, and the connection has failed.
  clock.aheadMs = 11 * 60_000;
  await sweepConnecting({ db, vault: vaultClient }, new Date(Date.now() + clock.aheadMs));
  const end = (await api.getConnection({ connectionId, environment: development }, call(acme.token))).connection;
  expect(end).toMatchObject({ state: ConnectionState.FAILED, error: "The connection was not verified in time." });
  expect(vault.destroyed.has(accountId ?? "")).toBe(true);
  await expect(verify("mallory", brought)).rejects.toMatchObject({ reason: "CONNECTION_FAILED" });
  expect(await accountsOf("mallory")).toBe(0);
  clock.aheadMs = 0;
});

test("the user's own browser brings the verifier, and the product's word completes the connection, once", async () => {
  const { ended, brought, accountId, redirect } = await agree("vera");
  expect(ended).toMatchObject({
    connection: { state: ConnectionState.AWAITING_VERIFICATION, accountId: "" },
    verifier: brought.get("verifier"),
  });
  expect(ended.redirectUri).toMatch(/^https:\/\/app\.acme-crm\.com\/connected\?x=1&connection_id=con_\w+&verifier=/);
  // A reload brings the same.
  expect(await gateway.completeConnection(redirect, call())).toEqual(ended);
  const { connection } = await verify("vera", brought);
  expect(connection).toMatchObject({ state: ConnectionState.SUCCEEDED, accountId });
  expect((await verify("vera", brought)).connection).toEqual(connection);
  const made = (await api.getAccount({ environment: development, accountId }, call(acme.token))).account;
  expect(made).toMatchObject({
    name: "ann@provider.test",
    authorizedScopes: ["read", "write"],
    externalUserId: "vera",
  });
  await sweepConnecting({ db, vault: vaultClient }, new Date(Date.now() + 3_600_000));
  expect(vault.destroyed.has(accountId ?? "")).toBe(false);
});

test("verifies no connection of another project, environment, or without its verifier", async () => {
  const { brought } = await agree("walt");
  const other = await newProject(account);
  const named = { externalUserId: "walt", connectionId: brought.get("connection_id") ?? "", verifier: "x" };
  const foreign = api.verifyConnection({ environment: development, ...named }, call(other.token));
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND" });
  await expect(verify("walt", brought, { environment: production })).rejects.toMatchObject({ code: "NOT_FOUND" });
  await expect(verify("walt", brought, { verifier: "" })).rejects.toMatchObject({
    violations: [{ field: "verifier" }],
  });
  await expect(verify("", brought)).rejects.toMatchObject({ violations: [{ field: "external_user_id" }] });
  expect(await accountsOf("walt")).toBe(0);
});

test("verifies too late by a moment, before any sweep: nothing is connected", async () => {
  const { brought } = await agree("late");
  clock.aheadMs = 10 * 60_000 + 1_000;
  await expect(verify("late", brought)).rejects.toMatchObject({ code: "FAILED_PRECONDITION" });
  clock.aheadMs = 0;
  expect(await accountsOf("late")).toBe(0);
});

test("holds keys that a victim types in just the same", async () => {
  const token = await newConnectToken(account, acme.token, { externalUserId: "keys", ...verified });
  const created = await api.createAccount({ appSlug: "sandbox_header_key", credential: keyFields }, call(token));
  expect(created).toMatchObject({ account: undefined, connectionId: expect.stringMatching(/^con_/) });
  expect(await accountsOf("keys")).toBe(0);
  const brought = new URLSearchParams({ connection_id: created.connectionId, verifier: created.verifier });
  await expect(verify("victor", brought)).rejects.toMatchObject({ code: "NOT_FOUND" });
  expect((await verify("keys", brought)).connection).toMatchObject({ state: ConnectionState.SUCCEEDED });
  expect(await accountsOf("keys")).toBe(1);
});

test("replaces no credential of an account that is there", async () => {
  const existing = await newKeyAccount(account, acme.token, "again");
  const token = await newConnectToken(account, acme.token, { externalUserId: "again", ...verified });
  const stored = vault.callsOf("storeCredential").length;
  const request = { appSlug: "sandbox_header_key", credential: keyFields, accountId: existing.id };
  await expect(api.createAccount(request, call(token))).rejects.toMatchObject({ reason: "RECONNECT_UNVERIFIABLE" });
  expect(vault.callsOf("storeCredential")).toHaveLength(stored);
});

test("keeps no verifier and logs none", async () => {
  const { brought } = await agree("quiet");
  await verify("quiet", brought);
  const verifier = brought.get("verifier") ?? "-";
  const rows = await db.selectFrom("connections").selectAll().execute();
  expect(JSON.stringify(rows)).not.toContain(verifier);
  expect(account.lines.join("")).not.toContain(verifier);
});

test("gives the account what the vault told of its credential, as if it had not waited", async () => {
  const times = {
    expireTime: new Date("2030-01-01T00:00:00Z"),
    lastRefreshTime: new Date("2026-01-01T00:00:00Z"),
    nextRefreshTime: new Date("2029-12-31T00:00:00Z"),
  };
  const credential = Credential.fromPartial({ scopes: ["read"], generation: 3n, ...times });
  vault.answers.completeAuthorization = async () => ({ credential, identityName: "facts@provider.test" });
  vault.answers.storeCredential = async () => ({ credential });
  const { brought, accountId } = await agree("facts");
  await verify("facts", brought);
  const token = await newConnectToken(account, acme.token, { externalUserId: "facts", ...verified });
  const created = await api.createAccount({ appSlug: "sandbox_header_key", credential: keyFields }, call(token));
  vault.restore();
  const keys = new URLSearchParams({ connection_id: created.connectionId, verifier: created.verifier });
  const second = (await verify("facts", keys)).connection?.accountId ?? "";
  for (const id of [accountId, second]) {
    const row = await db.selectFrom("accounts").selectAll().where("id", "=", id).executeTakeFirst();
    expect(row).toMatchObject({ credentialGeneration: 3, authorizedScopes: ["read"], ...times });
  }
});

test("connects nothing when the OAuth app was deleted meanwhile, and has the credential destroyed", async () => {
  const project = await newProject(account);
  const doomed = await newOauthApp(account, project.projectId);
  const token = await newConnectToken(account, project.token, { externalUserId: "orphan", ...verified });
  const started = await api.startConnection({ appSlug: "sandbox", browserBinding: binding }, call(token));
  const { accountId = "" } = lastAsked("startAuthorization");
  const redirect = { state: stateOf(started.authorizationUrl), code: "c", browserBinding: binding };
  const { verifier } = await gateway.completeConnection(redirect, call());
  await api.deleteOauthApp({ oauthAppId: doomed }, call(project.token));
  const ask = {
    environment: development,
    externalUserId: "orphan",
    connectionId: started.connectionId,
    verifier,
  } as const;
  const message = "The OAuth app was deleted meanwhile.";
  for (const _repeat of [1, 2]) {
    const refused = api.verifyConnection(ask, call(project.token));
    await expect(refused).rejects.toMatchObject({ reason: "CONNECTION_FAILED", message });
  }
  expect(vault.destroyed.has(accountId)).toBe(true);
  const rows = await db.selectFrom("accounts").select("id").where("projectId", "=", project.projectId).execute();
  expect(rows).toEqual([]);
  const reserved = db.selectFrom("accountReservations").select("accountId").where("projectId", "=", project.projectId);
  expect(await reserved.execute()).toEqual([]);
  const events = await db
    .selectFrom("events")
    .selectAll()
    .where("projectId", "=", project.projectId)
    .orderBy("sequence")
    .execute();
  expect(events).toMatchObject([{ type: "connection.failed", externalUserId: "orphan", data: { error: message } }]);
});
