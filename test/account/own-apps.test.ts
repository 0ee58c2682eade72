// A project's own apps: who sees them, what is refused, what is told of a change, and what becomes of accounts. The vault
// records here; test/vault/own-apps.test.ts and test/system/own-apps.test.ts have the true one.
import { expect, test } from "vitest";
import { invalidField, StatusError } from "#libs/errors.ts";
import { AuthType } from "#proto/deputy/account/v1/apps.ts";
import {
  binding,
  call,
  collect,
  development,
  newConnectToken,
  newProject,
  production,
  startAccount,
} from "./harness.ts";

const account = await startAccount();
const { api, gateway, operator, vault, db } = account;
const acme = await newProject(account);
const other = await newProject(account);

const definitionOf = (slug: string, more: object = {}) =>
  JSON.stringify({
    ...{ slug, name: `App ${slug}`, auth: "keys", categories: ["Own"] },
    custom_fields: [{ name: "api_key", label: "Key", secret: true }],
    proxy: {
      enabled: true,
      base_url: "https://api.crm.com",
      allowed_domains: ["api.crm.com"],
      inject: { headers: { authorization: "Bearer {{credential.api_key}}" } },
    },
    ...more,
  });
const oauth = {
  auth: "oauth2",
  custom_fields: [],
  oauth2: { authorize: { url: "https://crm.com/a" }, token: { url: "https://crm.com/t" }, scopes: ["read"] },
};
const create = (slug: string, more: object = {}, token = acme.token) =>
  api.createApp({ definition: definitionOf(slug, more) }, call(token));
const connect = async (appSlug: string, environment: 1 | 2 = development, token = acme.token) => {
  const credential = { $case: "fields", value: { values: { api_key: "any key" } } } as const;
  const request = { environment, externalUserId: "ann", appSlug, credential };
  return (await api.createAccount(request, call(token))).account?.id ?? "";
};
interface Entry {
  readonly action: string;
  readonly before: object | null;
  readonly after: object | null;
}
const entriesOf = (resourceId: string) =>
  account.owner.query<Entry>(
    "select action, actor, before, after from audit_entries where project_id = $1 and resource_id = $2 order by create_time",
    [acme.projectId, resourceId],
  );

test("shows an app to callers of its project, by slug and by id, and to nobody else", async () => {
  const { app } = await create("seen");
  expect(app).toMatchObject({ slug: "seen", authType: AuthType.KEYS, projectOwned: true });
  const byId = { appSlug: app?.id ?? "" };
  expect((await api.getApp(byId, call(acme.token))).app).toEqual(app);
  const connectToken = await newConnectToken(account, acme.token);
  expect((await gateway.getApp({ appSlug: "seen" }, call(connectToken))).app).toEqual(app);
  const { projectId } = acme;
  expect((await operator.getApp({ projectId, appSlug: "seen" }, call())).app).toEqual(app);
  const refused = { code: "NOT_FOUND", reason: "APP_NOT_FOUND", message: "No such app." };
  for (const asked of [{ appSlug: "seen" }, byId, { projectId, appSlug: "seen" }]) {
    await expect(api.getApp(asked, call())).rejects.toMatchObject(refused);
    await expect(gateway.getApp(asked, call())).rejects.toMatchObject(refused);
  }
  await expect(api.getApp({ appSlug: "seen" }, call(other.token))).rejects.toMatchObject(refused);
  await expect(api.getApp({ projectId, appSlug: "seen" }, call(other.token))).rejects.toMatchObject({
    code: "NOT_FOUND",
  });
});

test("lists own apps beside the catalog's, in order and in pages, for their project alone", async () => {
  await create("listed_a", { featured_weight: 9 });
  const slugs = async (request: object, token?: string) =>
    (await api.listApps(request, call(token))).apps.map(({ slug }) => slug);
  expect((await slugs({}, acme.token))[0]).toBe("listed_a");
  expect(await slugs({ categories: ["Own"], query: "LISTED" }, acme.token)).toEqual(["listed_a"]);
  const first = await api.listApps({ pageSize: 1 }, call(acme.token));
  const rest = await api.listApps({ pageToken: first.nextPageToken }, call(acme.token));
  expect(first.totalSize).toBe(rest.apps.length + 1);
  expect(rest.apps.map(({ slug }) => slug)).toContain("sandbox");
  for (const token of [undefined, other.token]) expect(await slugs({ query: "listed" }, token)).toEqual([]);
  expect(await slugs({ projectId: acme.projectId, query: "listed" })).toEqual([]);
});

test("refuses a definition with every fault by its field, and writes and sends nothing", async () => {
  const sent = vault.callsOf("putApp").length;
  const faulty = { nmae: 1, auth: "magic", proxy: { enabled: "yes" } };
  await expect(create("faulty", faulty)).rejects.toMatchObject({
    code: "INVALID_ARGUMENT",
    violations: expect.arrayContaining(
      ["nmae", "auth", "proxy.enabled", "proxy.base_url"].map((field) =>
        expect.objectContaining({ field: `definition.${field}` }),
      ),
    ),
  });
  await expect(api.createApp({ definition: "a: [" }, call(acme.token))).rejects.toMatchObject({
    violations: [{ field: "definition" }],
  });
  const large = api.createApp({ definition: "#".repeat(65_537) }, call(acme.token));
  await expect(large).rejects.toMatchObject({ violations: [{ field: "definition" }] });
  expect(vault.callsOf("putApp")).toHaveLength(sent);
});

test("passes on what the vault refuses, and keeps nothing of it", async () => {
  vault.failNext("putApp", invalidField("definition.proxy.base_url", "The host is an address: use a name."));
  await expect(create("refused")).rejects.toMatchObject({ violations: [{ field: "definition.proxy.base_url" }] });
  vault.failNext("putApp");
  await expect(create("refused")).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(await entriesOf("refused")).toEqual([]);
  await create("refused");
});

test("takes no slug twice: not the catalog's, not the project's; another project's is its own", async () => {
  const exists = { code: "ALREADY_EXISTS", reason: "APP_ALREADY_EXISTS" };
  await expect(create("sandbox")).rejects.toMatchObject(exists);
  const made = await Promise.allSettled([create("twice"), create("twice"), create("twice")]);
  expect(made.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  await expect(create("twice")).rejects.toMatchObject(exists);
  await create("twice", { name: "Theirs" }, other.token);
  expect((await api.getApp({ appSlug: "twice" }, call(acme.token))).app?.name).toBe("App twice");
});

test("limits how many apps a project may have", async () => {
  const crowded = await newProject(account);
  const row = { projectId: crowded.projectId, definition: "", createTime: new Date(), updateTime: new Date() };
  await db
    .insertInto("ownApps")
    .values(Array.from({ length: 100 }, (_, n) => ({ ...row, slug: `app${n}` })))
    .execute();
  await expect(create("one_more", {}, crowded.token)).rejects.toMatchObject({ reason: "TOO_MANY_APPS" });
});

test("is for callers who may write projects", async () => {
  const reader = await newProject(account, ["connect:projects:read"]);
  await expect(create("x", {}, reader.token)).rejects.toMatchObject({ reason: "SCOPE_MISSING" });
  await expect(create("x", {}, await newConnectToken(account, acme.token))).rejects.toMatchObject({
    reason: "CONNECT_TOKEN_NOT_ALLOWED",
  });
  const foreign = api.createApp({ projectId: acme.projectId, definition: definitionOf("x") }, call(other.token));
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("connects accounts of an own app by keys and by OAuth, in its project alone", async () => {
  await create("keyed");
  await create("granted", oauth);
  const accountId = await connect("keyed");
  expect(vault.callsOf("storeCredential").at(-1)?.request).toMatchObject({ accountId, appSlug: "keyed" });
  await expect(connect("keyed", development, other.token)).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  const token = await newConnectToken(account, acme.token, { appSlug: "granted" });
  await api.createOauthApp({ appSlug: "granted", clientId: "c" }, call(acme.token));
  expect(await gateway.validateConnectToken({ connectToken: token }, call())).toMatchObject({
    valid: true,
    app: { slug: "granted", projectOwned: true },
  });
  await api.startConnection({ browserBinding: binding }, call(token));
  expect(vault.callsOf("startAuthorization").at(-1)?.request).toMatchObject({ appSlug: "granted", scopes: ["read"] });
  for (const refused of [
    () => api.createOauthApp({ appSlug: "granted", clientId: "c" }, call(other.token)),
    () => newConnectToken(account, other.token, { appSlug: "granted" }),
    () => api.listOauthApps({ appSlug: "granted" }, call(other.token)),
  ]) {
    await expect(refused()).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  }
});

test("changes an app for all from then on, and tells before and after", async () => {
  await create("changing");
  const update = (more: object, appSlug = "changing", slug = "changing") =>
    api.updateApp({ appSlug, definition: definitionOf(slug, more) }, call(acme.token));
  const inject = { headers: { "x-key": "{{credential.api_key}}" } };
  const proxy = { enabled: true, base_url: "https://eu.crm.com", inject };
  const { app } = await update({ proxy });
  expect((await api.getApp({ appSlug: "changing" }, call(acme.token))).app).toEqual(app);
  expect(app).toMatchObject({ projectOwned: true, proxy: { baseUrl: "https://eu.crm.com" } });
  const [, changed] = await entriesOf("changing");
  expect(changed).toMatchObject({
    ...{ action: "UpdateApp", actor: acme.clientId },
    before: { proxy: { base_url: "https://api.crm.com", allowed_domains: ["api.crm.com"] } },
    after: { proxy: { base_url: "https://eu.crm.com", inject } },
  });
  expect(vault.callsOf("putApp").at(-1)?.request).toMatchObject({ projectId: acme.projectId });
  await expect(update({}, "changing", "renamed")).rejects.toMatchObject({ violations: [{ field: "definition.slug" }] });
  await expect(update({}, "absent", "absent")).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  await expect(update({}, "sandbox", "sandbox")).rejects.toMatchObject({ reason: "APP_OF_CATALOG" });
  vault.failNext("putApp");
  await expect(update({ name: "Lost" })).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect((await api.getApp({ appSlug: "changing" }, call(acme.token))).app).toEqual(app);
  expect(await entriesOf("changing")).toHaveLength(2);
});

test("an app with accounts keeps its way of authenticating", async () => {
  await create("kept");
  await connect("kept");
  await connect("kept", production);
  const update = () => api.updateApp({ appSlug: "kept", definition: definitionOf("kept", oauth) }, call(acme.token));
  await expect(update()).rejects.toMatchObject({ reason: "APP_IN_USE", metadata: { accounts: "2" } });
  const target = { $case: "appSlug", value: "kept" } as const;
  for (const environment of [development, production] as const) {
    await collect(api.revokeAllAccounts({ environment, target }, call(acme.token)));
  }
  await update();
});

test("deletes no app in use, and says how many accounts use it, in both environments", async () => {
  await create("in_use");
  await connect("in_use");
  await connect("in_use", production);
  const remove = (more: object = {}) => api.deleteApp({ appSlug: "in_use", ...more }, call(acme.token));
  await expect(remove()).rejects.toMatchObject({
    ...{ code: "FAILED_PRECONDITION", reason: "APP_IN_USE", metadata: { accounts: "2" } },
    message: expect.stringContaining("2 accounts"),
  });
  expect(vault.callsOf("destroyApp")).toEqual([]);
  vault.failNext("destroyCredentials");
  await expect(remove({ revokeAccounts: true })).rejects.toMatchObject({ code: "UNAVAILABLE" });
  await remove({ revokeAccounts: true });
  expect(vault.callsOf("destroyApp").at(-1)?.request).toEqual({ projectId: acme.projectId, appSlug: "in_use" });
  const accounts = await db.selectFrom("accounts").select("state").where("appSlug", "=", "in_use").execute();
  expect(accounts.map(({ state }) => state)).toEqual(["REVOKED", "REVOKED"]);
  await expect(remove()).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  await expect(connect("in_use")).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  const told = (await entriesOf("in_use")).map(({ action, before, after }) => [
    action,
    before !== null,
    after !== null,
  ]);
  expect(told).toEqual([
    ["CreateApp", false, true],
    ["DeleteApp", true, false],
  ]);
  await create("in_use");
});

test("takes the OAuth apps and overrides along, and leaves everything when the vault fails", async () => {
  await create("with_client", oauth);
  const { oauthApp } = await api.createOauthApp({ appSlug: "with_client", clientId: "c" }, call(acme.token));
  const oauthAppId = oauthApp?.id ?? "";
  const override = { appSlug: "with_client", name: "EU", oauthAppId };
  const { appOverride } = await api.createAppOverride(override, call(acme.token));
  const remove = () => api.deleteApp({ appSlug: "with_client" }, call(acme.token));
  vault.failNext("destroyOauthClient", new StatusError("UNAVAILABLE", "DOWN", "Down."));
  await expect(remove()).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(vault.callsOf("destroyApp").filter(({ request }) => JSON.stringify(request).includes("with_client"))).toEqual(
    [],
  );
  vault.failNext("destroyApp", new StatusError("UNAVAILABLE", "DOWN", "Down."));
  await expect(remove()).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect((await api.getOauthApp({ oauthAppId }, call(acme.token))).oauthApp).toEqual(oauthApp);
  await remove();
  await expect(api.getOauthApp({ oauthAppId }, call(acme.token))).rejects.toMatchObject({ code: "NOT_FOUND" });
  const gone = api.getAppOverride({ appOverrideId: appOverride?.id ?? "" }, call(acme.token));
  await expect(gone).rejects.toMatchObject({ code: "NOT_FOUND" });
  expect(vault.callsOf("destroyOauthClient").at(-1)?.request).toEqual({ projectId: acme.projectId, oauthAppId });
});
