// Apps of the catalog.
import { expect, test } from "vitest";
import { AppOrder, AuthType } from "#proto/deputy/account/v1/apps.ts";
import { call, newConnectToken, newProject, startAccount } from "./harness.ts";

const account = await startAccount();
const { api, gateway } = account;
const acme = await newProject(account);
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
