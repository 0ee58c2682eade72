// What is told of a connection's end, in its transaction; and that no credential is left behind or lost, however it ended.
import { expect, test } from "vitest";
import { getApp, loadCatalog } from "#libs/catalog.ts";
import { StatusError } from "#libs/errors.ts";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { sweepConnecting } from "../../services/account/sweep-connecting.ts";
import {
  binding,
  call,
  collect,
  development,
  keyFields,
  newConnectToken,
  newKeyAccount,
  newOauthApp,
  newProject,
  startAccount,
} from "./harness.ts";

const openApp = "open_api";
const keyApp = getApp(loadCatalog("catalog", { production: false }), "sandbox_header_key");
const account = await startAccount(undefined, [
  { ...keyApp, slug: openApp, name: "Open", auth: "none", custom_fields: [] },
]);
const { operator, api, gateway, vault, vaultClient, db, owner } = account;
const acme = await newProject(account);
const oauthAppId = await newOauthApp(account, acme.projectId);
const webhookUri = "https://hooks.acme-crm.com/connections";

const lastAsked = (method: string) =>
  ({ ...vault.callsOf(method).at(-1)?.request }) as Readonly<Record<string, string>>;
const stateOf = (url: string) => new URL(url).searchParams.get("state") ?? "";
async function start(externalUserId: string, { more = {}, asked = {} } = {}) {
  const token = await newConnectToken(account, acme.token, { externalUserId, webhookUri, ...more });
  const started = await api.startConnection({ appSlug: "sandbox", browserBinding: binding, ...asked }, call(token));
  const { accountId } = lastAsked("startAuthorization");
  return { token, accountId: accountId ?? "", ...started, state: stateOf(started.authorizationUrl) };
}
const complete = (state: string, more = {}) =>
  gateway.completeConnection({ state, code: "the-code", browserBinding: binding, ...more }, call());
const eventsOf = (externalUserId: string) =>
  db.selectFrom("events").selectAll().where("externalUserId", "=", externalUserId).orderBy("sequence").execute();
const auditOf = (resourceId: string) =>
  db.selectFrom("auditEntries").selectAll().where("resourceId", "=", resourceId).orderBy("createTime").execute();
const sweep = (aheadMs: number) => sweepConnecting({ db, vault: vaultClient }, new Date(Date.now() + aheadMs));
const create = (externalUserId: string, token = acme.token, more = {}) =>
  api.createAccount(
    { environment: development, externalUserId, appSlug: "sandbox_header_key", credential: keyFields, ...more },
    call(token),
  );

test("tells of a new account and of one that is connected again, with the connection and its address", async () => {
  const first = await start("told");
  const accountId = (await complete(first.state)).connection?.accountId ?? "";
  const second = await start("told", { asked: { accountId } });
  await complete(second.state);
  await complete(second.state);
  expect(await eventsOf("told")).toMatchObject([
    {
      type: "account.connected",
      accountId,
      data: { connectionId: first.connectionId, webhookUri, appSlug: "sandbox" },
    },
    { type: "account.reconnected", accountId, data: { connectionId: second.connectionId, webhookUri } },
  ]);
  expect(await auditOf(accountId)).toMatchObject([
    { action: "CompleteConnection", actor: "user:told", after: { appSlug: "sandbox", oauthAppId } },
    { action: "CompleteConnection", actor: "user:told" },
  ]);
});

test("tells of a failure once, with its reason", async () => {
  const { state, connectionId } = await start("sad");
  await complete(state, { code: "", error: "access_denied" });
  await complete(state, { code: "", error: "access_denied" });
  expect(await eventsOf("sad")).toMatchObject([
    { type: "connection.failed", accountId: "", data: { connectionId, webhookUri, error: "The user said no." } },
  ]);
  expect(await auditOf(connectionId)).toMatchObject([{ actor: "user:sad", after: { state: "FAILED" } }]);
});

test("tells nothing of a connection whose account could not be made", async () => {
  const { state } = await start("rolled");
  await owner.query("alter table events add constraint broken check (external_user_id <> 'rolled')");
  try {
    await expect(complete(state)).rejects.toMatchObject({ code: "INTERNAL" });
    expect(
      (await api.listAccounts({ environment: development, externalUserId: "rolled" }, call(acme.token))).totalSize,
    ).toBe(0);
  } finally {
    await owner.query("alter table events drop constraint broken");
  }
  await complete(state);
  expect(await eventsOf("rolled")).toHaveLength(1);
});

test("audits tokens and accounts made by the project, without a secret", async () => {
  const token = await newConnectToken(account, acme.token, { externalUserId: "audited" });
  const { id: made } = (await create("audited")).account ?? { id: "" };
  const byUser = (await create("audited", token)).account?.id ?? "";
  expect(await auditOf(made)).toMatchObject([{ action: "CreateAccount", actor: acme.clientId }]);
  expect(await auditOf(byUser)).toMatchObject([{ action: "CreateAccount", actor: "user:audited" }]);
  const rows = await db.selectFrom("auditEntries").selectAll().orderBy("createTime").execute();
  const { actor } =
    rows.find(({ action, after }) => action === "CreateConnectToken" && JSON.stringify(after).includes("audited")) ??
    {};
  expect(actor).toBe(acme.clientId);
  expect(JSON.stringify(rows)).not.toContain(token);
  expect(JSON.stringify(rows)).not.toContain("sandbox-key-");
  expect(await eventsOf("audited")).toMatchObject([{ data: { appSlug: "sandbox_header_key" } }, {}]);
});

test("gives the account that was made although the commit's answer was lost, and keeps its credential", async () => {
  const { transaction } = db;
  let faults = 0;
  // The first transaction that gives an account is committed, and then reported as failed.
  db.transaction = () => {
    const builder = transaction.call(db);
    return Object.assign(Object.create(builder), {
      execute: async (work: never) => {
        const result: unknown = await builder.execute(work);
        const isAccount = typeof result === "object" && result !== null && "appSlug" in result;
        if (isAccount && faults++ === 0) throw new Error("the connection to the database was lost");
        return result;
      },
    });
  };
  let accountId = "";
  try {
    accountId = (await create("lost")).account?.id ?? "";
  } finally {
    db.transaction = transaction;
  }
  expect(faults).toBe(1);
  expect((await api.getAccount({ environment: development, accountId }, call(acme.token))).account?.id).toBe(accountId);
  await sweep(3_600_000);
  expect(vault.destroyed.has(accountId)).toBe(false);
});

test("destroys what the vault was given for an account that could not be made, by the sweep where not at once", async () => {
  await owner.query("alter table accounts add constraint broken check (external_user_id <> 'torn')");
  vault.failNext("destroyCredentials");
  try {
    await expect(create("torn")).rejects.toMatchObject({ code: "INTERNAL" });
  } finally {
    await owner.query("alter table accounts drop constraint broken");
  }
  const { accountId } = lastAsked("storeCredential");
  expect(vault.destroyed.has(accountId ?? "")).toBe(false);
  await sweep(0);
  expect(vault.destroyed.has(accountId ?? "")).toBe(true);
  expect(
    await db
      .selectFrom("accountReservations")
      .selectAll()
      .where("accountId", "=", accountId ?? "")
      .execute(),
  ).toEqual([]);
});

test("destroys the credential of a connection that nobody came back to after its process had died", async () => {
  const { state, accountId, connectionId } = await start("dead");
  await owner.query("alter table accounts add constraint broken check (external_user_id <> 'dead')");
  try {
    await expect(complete(state)).rejects.toMatchObject({ code: "INTERNAL" });
  } finally {
    await owner.query("alter table accounts drop constraint broken");
  }
  await sweep(11 * 60_000);
  expect(vault.destroyed.has(accountId ?? "")).toBe(false);
  await sweep(13 * 60_000);
  expect(vault.destroyed.has(accountId ?? "")).toBe(true);
  const end = await complete(state);
  expect(end.connection).toMatchObject({ id: connectionId, state: ConnectionState.FAILED });
  expect(await eventsOf("dead")).toMatchObject([{ type: "connection.failed", data: { connectionId } }]);
});

test("revoking a user ends tokens, open connections and what is being made at this moment", async () => {
  const { token, state, accountId, connectionId } = await start("fired");
  const target = { $case: "externalUserId", value: "fired" } as const;
  const revoke = () => collect(api.revokeAllAccounts({ environment: development, target }, call(acme.token)));
  const spare = await newConnectToken(account, acme.token, { externalUserId: "fired" });
  // A call that has the vault's answer but not yet its account.
  vault.hooks.before = async (method) => {
    if (method !== "storeCredential") return;
    delete vault.hooks.before;
    await revoke();
  };
  await expect(create("fired")).rejects.toMatchObject({ reason: "CONNECTING_ENDED" });
  const { accountId: torn } = lastAsked("storeCredential");
  const end = await complete(state);
  expect(end.connection).toMatchObject({ id: connectionId, state: ConnectionState.FAILED, accountId: "" });
  for (const used of [token, spare]) {
    await expect(create("fired", used)).rejects.toMatchObject({ reason: "CONNECT_TOKEN_INVALID" });
  }
  await sweep(0);
  expect([vault.destroyed.has(accountId ?? ""), vault.destroyed.has(torn ?? "")]).toEqual([true, true]);
  expect(
    (await api.listAccounts({ environment: development, externalUserId: "fired" }, call(acme.token))).totalSize,
  ).toBe(0);
  // Nobody else's are touched.
  const other = await start("hired");
  await revoke();
  expect((await complete(other.state)).connection?.state).toBe(ConnectionState.SUCCEEDED);
});

test("destroys also what the vault seals after a sweep had nothing to destroy", async () => {
  const target = { $case: "externalUserId", value: "slow" } as const;
  vault.hooks.before = async (method) => {
    if (method !== "storeCredential") return;
    delete vault.hooks.before;
    await collect(api.revokeAllAccounts({ environment: development, target }, call(acme.token)));
    await sweep(0);
    vault.destroyed.clear();
    // Whoever began it cannot undo it either.
    vault.failNext("destroyCredentials");
  };
  await expect(create("slow")).rejects.toMatchObject({ reason: "CONNECTING_ENDED" });
  const { accountId = "" } = lastAsked("storeCredential");
  await sweep(0);
  expect(vault.destroyed.has(accountId)).toBe(true);
});

test("asks the vault for all scopes unless a part will do, and passes on what the redirect brought", async () => {
  await start("all");
  expect(vault.callsOf("startAuthorization").at(-1)?.request).toMatchObject({ allScopesRequired: true });
  const { state } = await start("part", { more: { allowProgressiveScopes: true } });
  expect(vault.callsOf("startAuthorization").at(-1)?.request).toMatchObject({ allScopesRequired: false });
  await complete(state, { parameters: { realmId: "42" } });
  expect(vault.callsOf("completeAuthorization").at(-1)?.request).toMatchObject({ parameters: { realmId: "42" } });
});

test("connects with the user's own OAuth client, whose secret only the vault sees, and clears it away", async () => {
  const bare = await newProject(account);
  const customOauthClient = { clientId: "my-client", clientSecret: "my-very-own" };
  const token = await newConnectToken(account, bare.token, { externalUserId: "own" });
  const ask = { connectToken: token, appSlug: "sandbox" };
  expect(await api.validateConnectToken(ask, call())).toMatchObject({ valid: false });
  expect(await api.validateConnectToken({ ...ask, customOauthClient: true }, call())).toMatchObject({ valid: true });
  const request = { appSlug: "sandbox", browserBinding: binding, customOauthClient };
  const { authorizationUrl } = await api.startConnection(request, call(token));
  const put = lastAsked("putOauthClient");
  expect(put).toMatchObject({ clientId: "my-client", clientSecrets: ["my-very-own"], appSlug: "sandbox" });
  expect(vault.callsOf("startAuthorization").at(-1)?.request).toMatchObject({ oauthAppId: put.oauthAppId ?? "" });
  const made = (await complete(stateOf(authorizationUrl))).connection?.accountId ?? "";
  // It is the account's own: no list has it and no other connection can name it.
  expect((await api.listOauthApps({}, call(bare.token))).oauthApps).toEqual([]);
  const again = await newConnectToken(account, bare.token, { externalUserId: "own" });
  const named = api.startConnection(
    { ...request, customOauthClient: undefined, oauthAppId: put.oauthAppId ?? "" },
    call(again),
  );
  await expect(named).rejects.toMatchObject({ code: "NOT_FOUND" });
  await sweep(2 * 3_600_000);
  expect(vault.callsOf("destroyOauthClient")).toEqual([]);
  await api.deleteAccount({ environment: development, accountId: made }, call(bare.token));
  await sweep(2 * 3_600_000);
  expect(vault.callsOf("destroyOauthClient")).toMatchObject([{ request: { oauthAppId: put.oauthAppId } }]);
  const rows = await db.selectFrom("ownOauthClients").selectAll().execute();
  expect(rows).toEqual([]);
  expect(account.lines.join("")).not.toContain("my-very-own");
});

test("has keys tried where the project asks for it, and makes no account of keys that are refused", async () => {
  await create("untested");
  expect(vault.callsOf("storeCredential").at(-1)?.request).toMatchObject({ test: false });
  const { project } = await operator.createProject({ name: "Careful", requireKeyAuthTest: true }, call());
  expect(project?.requireKeyAuthTest).toBe(true);
  const projectId = project?.id ?? "";
  const message = "Test request failed. Please verify your credentials and try again.";
  vault.failNext("storeCredential", new StatusError("FAILED_PRECONDITION", "KEY_TEST_FAILED", message));
  const request = { projectId, environment: development, externalUserId: "u", appSlug: "sandbox_header_key" } as const;
  const refused = operator.createAccount({ ...request, credential: keyFields }, call());
  await expect(refused).rejects.toMatchObject({ code: "FAILED_PRECONDITION", message });
  expect(vault.callsOf("storeCredential").at(-1)?.request).toMatchObject({ test: true });
  expect((await operator.listAccounts({ projectId, environment: development }, call())).totalSize).toBe(0);
});

test("connects an app that asks for no credential", async () => {
  const credential = { $case: "fields", value: { values: {} } } as const;
  const token = await newConnectToken(account, acme.token, { externalUserId: "none" });
  const { account: made } = await api.createAccount({ appSlug: openApp, credential }, call(token));
  expect(made).toMatchObject({ appSlug: openApp, externalUserId: "none", oauthAppId: "" });
  const wrong = api.createAccount(
    { environment: development, externalUserId: "none", appSlug: openApp, credential: keyFields },
    call(acme.token),
  );
  await expect(wrong).rejects.toMatchObject({ violations: [{ field: "fields" }] });
});

test("keeps the account's credential when its reconnection fails", async () => {
  const { id: accountId } = await newKeyAccount(account, acme.token, "kept");
  vault.failNext("storeCredential");
  await expect(create("kept", acme.token, { accountId })).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(vault.destroyed.has(accountId ?? "")).toBe(false);
  expect(await eventsOf("kept")).toMatchObject([{ type: "account.connected" }]);
});
