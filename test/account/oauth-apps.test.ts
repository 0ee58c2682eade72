// OAuth apps: a project's own clients at providers. Their secrets go to the vault alone; what uses one keeps it from being deleted.
import { expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import type { UpdateOauthAppRequest } from "#proto/deputy/account/v1/apps.ts";
import { call, development, newConnectToken, newOauthApp, newProject, production, startAccount } from "./harness.ts";

const account = await startAccount();
const { api, operator, vault, db, owner } = account;
const acme = await newProject(account);
const other = await newProject(account);

const update = (oauthAppId: string, change: Partial<UpdateOauthAppRequest>, token = acme.token) =>
  api.updateOauthApp({ oauthAppId, ...change }, call(token));
const remove = (oauthAppId: string, revokeAccounts = false) =>
  api.deleteOauthApp({ oauthAppId, revokeAccounts }, call(acme.token));
const find = (oauthAppId: string) => api.getOauthApp({ oauthAppId }, call(acme.token));
const clientsPut = () => vault.callsOf("putOauthClient").map(({ request }) => request);
const clientsDestroyed = () => vault.callsOf("destroyOauthClient").map(({ request }) => request);
/** An account of the OAuth app, made of a grant. */
const connect = async (oauthAppId: string, environment: 1 | 2 = development) => {
  const credential = { $case: "grant", value: { accessToken: "the-access-token" } } as const;
  const request = { environment, externalUserId: "ann", appSlug: "sandbox", oauthAppId, credential };
  return (await api.createAccount(request, call(acme.token))).account?.id ?? "";
};
const audited = async (resourceId: string) =>
  (
    await db
      .selectFrom("auditEntries")
      .select(["action", "actor", "before", "after"])
      .where("resourceId", "=", resourceId)
      .orderBy("createTime")
      .execute()
  ).map((entry) => ({ ...entry }));

test("makes an OAuth app whose secret goes to the vault and nowhere else", async () => {
  const { oauthApp } = await api.createOauthApp(
    {
      appSlug: "sandbox",
      clientId: "the-client",
      clientSecret: "the-secret",
      name: "Mine",
      scopes: ["read"],
      additionalScopes: ["extra"],
    },
    call(acme.token),
  );
  expect(oauthApp).toMatchObject({
    id: expect.stringMatching(/^oa_\w{22}$/),
    projectId: acme.projectId,
    appSlug: "sandbox",
    clientId: "the-client",
    redirectUri: "https://deputy.example:8443/oauth/callback",
  });
  expect(vault.callsOf("putOauthClient").at(-1)?.request).toEqual({
    projectId: acme.projectId,
    oauthAppId: oauthApp?.id,
    appSlug: "sandbox",
    clientId: "the-client",
    clientSecrets: ["the-secret"],
    keepSecrets: false,
  });
  expect(JSON.stringify(await db.selectFrom("oauthApps").selectAll().execute())).not.toContain("the-secret");
  const { id: oauthAppId = "" } = oauthApp ?? {};
  expect((await api.getOauthApp({ oauthAppId }, call(acme.token))).oauthApp).toEqual(oauthApp);
  const token = await newConnectToken(account, acme.token, { oauthAppId });
  await api.startConnection({ browserBinding: "b".repeat(32) }, call(token));
  expect(vault.callsOf("startAuthorization").at(-1)?.request).toMatchObject({ scopes: ["read", "extra"] });
});

test("stores a public client without a secret", async () => {
  await api.createOauthApp({ appSlug: "sandbox", clientId: "public" }, call(acme.token));
  expect(vault.callsOf("putOauthClient").at(-1)?.request).toMatchObject({ clientSecrets: [] });
});

test("makes no OAuth app when the vault fails, for an app without OAuth, or in another project", async () => {
  const bare = await newProject(account);
  const make = (more: object) => api.createOauthApp({ appSlug: "sandbox", clientId: "c", ...more }, call(bare.token));
  vault.failNext("putOauthClient");
  await expect(make({})).rejects.toMatchObject({ code: "UNAVAILABLE" });
  await expect(make({ appSlug: "sandbox_header_key" })).rejects.toMatchObject({ violations: [{ field: "app_slug" }] });
  await expect(make({ projectId: acme.projectId })).rejects.toMatchObject({ code: "NOT_FOUND" });
  expect((await api.listOauthApps({}, call(bare.token))).totalSize).toBe(0);
  const absent = operator.createOauthApp({ projectId: "proj_absent", appSlug: "sandbox", clientId: "c" }, call());
  await expect(absent).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("shows OAuth apps to their project alone, in pages", async () => {
  const project = await newProject(account);
  const made: string[] = [];
  for (let n = 0; n < 5; n++) made.push(await newOauthApp(account, project.projectId));
  const first = await api.listOauthApps({ pageSize: 3 }, call(project.token));
  const second = await api.listOauthApps({ pageSize: 3, pageToken: first.nextPageToken }, call(project.token));
  expect([...first.oauthApps, ...second.oauthApps].map(({ id }) => id).sort()).toEqual([...made].sort());
  expect(second).toMatchObject({ nextPageToken: "", totalSize: 5 });
  expect((await api.listOauthApps({ query: "none so named" }, call(project.token))).totalSize).toBe(0);
  expect((await api.listOauthApps({ appSlug: "sandbox" }, call(project.token))).totalSize).toBe(5);
  const foreign = api.getOauthApp({ oauthAppId: made[0] ?? "" }, call(other.token));
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such OAuth app." });
});

test("changes what is given and keeps the rest", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  const before = (await find(oauthAppId)).oauthApp;
  const calls = vault.calls.length;
  const { oauthApp } = await update(oauthAppId, { name: "Mine", scopes: ["read"], additionalScopes: ["extra"] });
  expect(oauthApp).toEqual({
    ...before,
    name: "Mine",
    scopes: ["read"],
    additionalScopes: ["extra"],
    updateTime: expect.any(Date),
  });
  expect((await find(oauthAppId)).oauthApp).toEqual(oauthApp);
  expect((await update(oauthAppId, { description: "Ours" })).oauthApp).toMatchObject({
    name: "Mine",
    scopes: ["read"],
  });
  const cleared = await update(oauthAppId, { name: "", clearScopes: true, clearAdditionalScopes: true });
  expect(cleared.oauthApp).toMatchObject({ name: "", description: "Ours", scopes: [], additionalScopes: [] });
  expect(vault.calls, "none of it is the vault's business").toHaveLength(calls);
});

test("puts a new secret before the old ones, and an empty one changes nothing", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  const puts = clientsPut().length;
  await update(oauthAppId, { clientSecret: "", clientId: "acme-client" });
  expect(clientsPut()).toHaveLength(puts);
  await update(oauthAppId, { clientSecret: "the-new-secret" });
  const client = { projectId: acme.projectId, oauthAppId, appSlug: "sandbox", clientId: "acme-client" };
  expect(clientsPut().at(-1)).toEqual({ ...client, clientSecrets: ["the-new-secret"], keepSecrets: true });
});

test("takes another client's secret in place of the old one's, and another id alone with the old secret", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  await update(oauthAppId, { clientId: "corrected" });
  expect(clientsPut().at(-1)).toMatchObject({ clientId: "corrected", clientSecrets: [], keepSecrets: true });
  const { oauthApp } = await update(oauthAppId, { clientId: "another", clientSecret: "its-secret" });
  expect(clientsPut().at(-1)).toMatchObject({ clientId: "another", clientSecrets: ["its-secret"], keepSecrets: false });
  expect(oauthApp?.clientId).toBe("another");
});

test("changes nothing when the vault fails", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  const before = await find(oauthAppId);
  vault.failNext("putOauthClient");
  const failed = update(oauthAppId, { name: "New", clientSecret: "the-new-secret" });
  await expect(failed).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(await find(oauthAppId)).toEqual(before);
  expect(await audited(oauthAppId)).toHaveLength(1);
});

test.each([
  ["client_id", { clientId: "" }],
  ["clear_scopes", { clearScopes: true, scopes: ["read"] }],
  ["clear_additional_scopes", { clearAdditionalScopes: true, additionalScopes: ["read"] }],
])("refuses a change with a wrong %s", async (field, change) => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  await expect(update(oauthAppId, change)).rejects.toMatchObject({ violations: [{ field }] });
});

test("leaves no secret in the vault when the OAuth app could not be made, or was deleted meanwhile", async () => {
  await owner.query("alter table oauth_apps add constraint broken check (client_id <> 'broken')");
  try {
    const failed = api.createOauthApp({ appSlug: "sandbox", clientId: "broken", clientSecret: "s" }, call(acme.token));
    await expect(failed).rejects.toMatchObject({ code: "INTERNAL" });
  } finally {
    await owner.query("alter table oauth_apps drop constraint broken");
  }
  const { oauthAppId: madeAs } = clientsPut().at(-1) as { oauthAppId: string };
  expect(clientsDestroyed().at(-1)).toMatchObject({ oauthAppId: madeAs });

  const oauthAppId = await newOauthApp(account, acme.projectId);
  vault.answers.putOauthClient = async () => {
    await remove(oauthAppId);
    return {};
  };
  const late = update(oauthAppId, { clientSecret: "the-new-secret" });
  await expect(late).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such OAuth app." });
  vault.restore();
  expect(clientsDestroyed().slice(-2)).toMatchObject([{ oauthAppId }, { oauthAppId }]);
});

test("deletes an OAuth app that nothing uses, and the vault's client with it", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  await remove(oauthAppId);
  expect(clientsDestroyed().at(-1)).toEqual({ projectId: acme.projectId, oauthAppId });
  const gone = { code: "NOT_FOUND", message: "No such OAuth app." };
  await expect(find(oauthAppId)).rejects.toMatchObject(gone);
  await expect(remove(oauthAppId)).rejects.toMatchObject(gone);
  const token = await newConnectToken(account, acme.token);
  const start = api.startConnection({ appSlug: "sandbox", oauthAppId, browserBinding: "b".repeat(32) }, call(token));
  await expect(start).rejects.toMatchObject(gone);
});

test("refuses to delete one that accounts of either environment use, with their number", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  await Promise.all([connect(oauthAppId), connect(oauthAppId), connect(oauthAppId, production)]);
  const destroyed = clientsDestroyed().length;
  await expect(remove(oauthAppId)).rejects.toMatchObject({
    code: "FAILED_PRECONDITION",
    reason: "OAUTH_APP_IN_USE",
    message: expect.stringContaining("accounts: 3"),
    metadata: { accounts: "3" },
  });
  expect(clientsDestroyed()).toHaveLength(destroyed);
  expect((await find(oauthAppId)).oauthApp?.id).toBe(oauthAppId);
});

test("revokes the accounts first when asked, of both environments and of no other OAuth app", async () => {
  const [oauthAppId, another] = [
    await newOauthApp(account, acme.projectId),
    await newOauthApp(account, acme.projectId),
  ];
  const ids = [await connect(oauthAppId), await connect(oauthAppId, production)];
  const left = await connect(another);
  const calls = vault.calls.length;
  await remove(oauthAppId, true);
  const done = vault.calls.slice(calls);
  expect(done.map(({ method }) => method)).toEqual(["destroyCredentials", "destroyCredentials", "destroyOauthClient"]);
  expect(done.slice(0, 2).flatMap(({ request }) => (request as { accountIds: string[] }).accountIds)).toEqual(ids);
  const revoked = api.getAccount({ environment: development, accountId: ids[0] ?? "" }, call(acme.token));
  await expect(revoked).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  expect((await api.getAccount({ environment: development, accountId: left }, call(acme.token))).account?.id).toBe(
    left,
  );
  await expect(find(oauthAppId)).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test.each(["destroyCredentials", "destroyOauthClient"])(
  "a deletion that ended in %s is taken up by the same call",
  async (method) => {
    const oauthAppId = await newOauthApp(account, acme.projectId);
    await connect(oauthAppId);
    vault.failNext(method, new StatusError("UNAVAILABLE", "DOWN", "The vault is down."));
    await expect(remove(oauthAppId, true)).rejects.toMatchObject({ code: "UNAVAILABLE" });
    expect((await find(oauthAppId)).oauthApp?.id).toBe(oauthAppId);
    await remove(oauthAppId, true);
    await expect(find(oauthAppId)).rejects.toMatchObject({ code: "NOT_FOUND" });
    const { totalSize } = await api.listAccounts({ environment: development, oauthAppId }, call(acme.token));
    expect(totalSize).toBe(0);
  },
);

test("an account that is connected while the OAuth app is deleted is revoked too, or keeps it from going", async () => {
  const meanwhile = async (revokeAccounts: boolean) => {
    const oauthAppId = await newOauthApp(account, acme.projectId);
    let accountId = "";
    vault.answers.destroyOauthClient = async () => {
      accountId = await connect(oauthAppId);
      return {};
    };
    const answer = await remove(oauthAppId, revokeAccounts).catch((error) => error);
    vault.restore();
    return { oauthAppId, accountId, answer };
  };
  const refused = await meanwhile(false);
  expect(refused.answer).toMatchObject({ reason: "OAUTH_APP_IN_USE", metadata: { accounts: "1" } });
  expect((await find(refused.oauthAppId)).oauthApp?.id).toBe(refused.oauthAppId);
  const { accountId, answer } = await meanwhile(true);
  expect(answer).toEqual({});
  const revoked = api.getAccount({ environment: development, accountId }, call(acme.token));
  await expect(revoked).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
});

test("refuses to delete one that an app override chooses, before any account is revoked", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  const accountId = await connect(oauthAppId);
  const override = { appSlug: "sandbox", name: "EU", oauthAppId };
  const { appOverride } = await api.createAppOverride(override, call(acme.token));
  const inUse = { reason: "OAUTH_APP_IN_USE", metadata: { app_overrides: "1" } };
  await expect(remove(oauthAppId, true)).rejects.toMatchObject(inUse);
  expect((await api.getAccount({ environment: development, accountId }, call(acme.token))).account?.id).toBe(accountId);
  const release = { appOverrideId: appOverride?.id ?? "", oauthAppId: "" };
  await api.updateAppOverride(release, call(acme.token));
  await remove(oauthAppId, true);
});

test("tells the audit who made, changed and deleted an OAuth app, and no secret", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  await update(oauthAppId, { name: "New", clientSecret: "the-new-secret" });
  await update(oauthAppId, { name: "Newer" });
  await remove(oauthAppId);
  const [made, changed, again, deleted, ...more] = await audited(oauthAppId);
  expect(more).toEqual([]);
  const app = { appSlug: "sandbox", clientId: "acme-client" };
  expect(made).toMatchObject({ action: "CreateOauthApp", actor: "service:operator", before: null, after: app });
  expect(changed).toMatchObject({
    action: "UpdateOauthApp",
    actor: acme.clientId,
    before: { ...app, name: "" },
    after: { ...app, name: "New", clientSecret: "changed" },
  });
  expect(again?.after).not.toHaveProperty("clientSecret");
  expect(deleted).toMatchObject({ action: "DeleteOauthApp", before: { ...app, name: "Newer" }, after: null });
  const kept = [
    await db.selectFrom("auditEntries").selectAll().orderBy("createTime").execute(),
    await db.selectFrom("oauthApps").selectAll().execute(),
    account.lines,
  ];
  expect(JSON.stringify(kept)).not.toMatch(/acme-secret|the-new-secret/);
});

test("changes and deletes OAuth apps of the caller's own project alone, with the right scope", async () => {
  const oauthAppId = await newOauthApp(account, acme.projectId);
  const gone = { code: "NOT_FOUND", message: "No such OAuth app." };
  const calls = vault.calls.length;
  await expect(update(oauthAppId, { clientSecret: "x" }, other.token)).rejects.toMatchObject(gone);
  await expect(api.deleteOauthApp({ oauthAppId }, call(other.token))).rejects.toMatchObject(gone);
  await expect(update("oa_absent", { clientSecret: "x" })).rejects.toMatchObject(gone);
  expect(vault.calls).toHaveLength(calls);
  const reader = await newProject(account, ["connect:projects:read"]);
  const own = await newOauthApp(account, reader.projectId);
  const refused = { code: "PERMISSION_DENIED", reason: "SCOPE_MISSING" };
  await expect(update(own, { name: "x" }, reader.token)).rejects.toMatchObject(refused);
  await expect(api.deleteOauthApp({ oauthAppId: own }, call(reader.token))).rejects.toMatchObject(refused);
});
