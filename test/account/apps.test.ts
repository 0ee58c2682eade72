// Apps of the catalog and OAuth apps.
import { expect, test } from "vitest";
import { AppOrder, AuthType } from "#proto/deputy/account/v1/apps.ts";
import { call, newConnectToken, newOauthApp, newProject, startAccount } from "./harness.ts";

const account = await startAccount();
const { api, gateway, operator, vault, db } = account;
const acme = await newProject(account);
const other = await newProject(account);
const slugs = async (request: Parameters<typeof api.listApps>[0]) =>
  (await api.listApps(request, call())).apps.map(({ slug }) => slug);

test("gives an app by slug and by id, to anybody", async () => {
  const { app } = await api.getApp({ appSlug: "sandbox_header_key" }, call());
  expect(app).toMatchObject({
    id: expect.stringMatching(/^app_[0-9a-f]{16}$/),
    authType: AuthType.KEYS,
    customFields: [{ name: "api_key", secret: true, optional: false }],
    proxy: { enabled: true, allowedDomains: ["localhost"] },
    projectOwned: false,
  });
  expect((await gateway.getApp({ appSlug: app?.id ?? "" }, call())).app).toEqual(app);
  const connectToken = await newConnectToken(account, acme.token);
  expect((await api.getApp({ appSlug: "sandbox" }, call(connectToken))).app?.scopeProfiles).toHaveLength(2);
  await expect(api.getApp({ appSlug: "nothing" }, call())).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
});

test("lists apps by weight, and searches, filters, orders and turns them round", async () => {
  const byWeight = ["tenant_key", "sandbox", "sandbox_header_key", "sandbox_query_key"];
  expect(await slugs({})).toEqual(byWeight);
  expect(await slugs({ descending: true })).toEqual([...byWeight].reverse());
  expect(await slugs({ query: "KEY IN" })).toEqual(["sandbox_header_key", "sandbox_query_key"]);
  expect(await slugs({ query: "tenant_" })).toEqual(["tenant_key"]);
  expect(await slugs({ categories: ["CRM", "Nothing"] })).toEqual(["tenant_key"]);
  const bySlug = ["sandbox", "sandbox_header_key", "sandbox_query_key", "tenant_key"];
  expect(await slugs({ order: AppOrder.SLUG })).toEqual(bySlug);
  expect(await slugs({ order: AppOrder.NAME, descending: true })).toEqual([...bySlug].reverse());
  expect(await slugs({ order: AppOrder.FEATURED_WEIGHT })).toEqual(bySlug);
});

test("lists apps in pages without gaps or repeats", async () => {
  const seen: string[] = [];
  let pageToken = "";
  do {
    const page = await api.listApps({ pageSize: 3, pageToken }, call());
    expect(page.totalSize).toBe(4);
    seen.push(...page.apps.map(({ slug }) => slug));
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  expect(seen).toEqual(await slugs({}));
  await expect(api.listApps({ pageToken: "bm90aGluZw" }, call())).rejects.toMatchObject({
    violations: [{ field: "page_token" }],
  });
});

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
