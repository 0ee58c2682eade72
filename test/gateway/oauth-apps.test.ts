// OAuth apps, app overrides and categories over REST: requests as existing clients send them, the calls that they become, and
// the JSON that comes back.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { invalidField, StatusError } from "#libs/errors.ts";
import { AppOverride, OauthApp } from "#proto/deputy/account/v1/apps.ts";
import { type GatewayFixture, json, sendgrid, slack, startGatewayFixture, time } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

const iso = time.toISOString();
const put = (body: unknown) => ({ ...json(body), method: "PUT" });

/** What the account service was asked, without what it was asked to show the app. */
function asked() {
  return gateway.asked.filter(({ method }) => method !== "getApp").map(({ method, request }) => ({ method, request }));
}

const oauthApp = OauthApp.fromPartial({
  id: "oa_1",
  projectId: "proj_1",
  appSlug: "slack",
  clientId: "a",
  name: "n",
  description: "d",
  scopes: ["s"],
  additionalScopes: ["t"],
  redirectUri: "https://deputy.example/oauth/callback",
  createTime: time,
  updateTime: time,
});
const slackJson = {
  name_slug: "slack",
  auth_type: "oauth",
  img_src: "https://img.example/slack.png",
  custom_fields_json: "[]",
  categories: ["Chat"],
  featured_weight: 0,
  scope_profiles: [],
  connect: { proxy_enabled: true, allowed_domains: ["slack.com"], base_proxy_target_url: "https://slack.com" },
};
const oauthAppJson = {
  ...slackJson,
  id: "oa_1",
  name: "n",
  description: "d",
  client_id: "a",
  scopes: ["s"],
  additional_scopes: ["t"],
  redirect_uri: "https://deputy.example/oauth/callback",
  owner_id: "proj_1",
  created_at: iso,
  updated_at: iso,
};

describe("OAuth apps", () => {
  beforeEach(() =>
    gateway.changeAccount({
      createOauthApp: async () => ({ oauthApp }),
      getOauthApp: async () => ({ oauthApp }),
      listOauthApps: async () => ({ oauthApps: [oauthApp], nextPageToken: "next", totalSize: 2 }),
      updateOauthApp: async () => ({ oauthApp }),
      deleteOauthApp: async () => ({}),
    }),
  );
  const path = "/v1/connect/proj_1/oauth_apps";

  it("are listed by app and name, page by page", async () => {
    const answer = await gateway.send(`${path}?app=slack&q=x`);
    expect(answer.status).toBe(200);
    expect(await answer.json()).toEqual({
      data: [oauthAppJson],
      page_info: { count: 1, total_count: 2, start_cursor: null, end_cursor: "next" },
    });
    expect(asked()).toMatchObject([
      { method: "listOauthApps", request: { projectId: "proj_1", appSlug: "slack", query: "x" } },
    ]);
    await gateway.send(`${path}?app=app_slack&limit=5&after=next`);
    expect(asked()[1]?.request).toMatchObject({ appSlug: "slack", pageSize: 5, pageToken: "next" });
  });

  it("are made; the secret goes on and never comes back", async () => {
    const body = { app: "slack", client_id: "a", client_secret: "b", name: "n", description: "d" };
    const answer = await gateway.send(path, json({ ...body, scopes: ["s"], additional_scopes: ["t"] }));
    expect(answer.status).toBe(200);
    expect(await answer.json()).toEqual(oauthAppJson);
    expect(asked()).toEqual([
      {
        method: "createOauthApp",
        request: {
          projectId: "proj_1",
          appSlug: "slack",
          clientId: "a",
          clientSecret: "b",
          name: "n",
          description: "d",
          scopes: ["s"],
          additionalScopes: ["t"],
        },
      },
    ]);
  });

  it("without a name of their own have the app's", async () => {
    gateway.changeAccount({ getOauthApp: async () => ({ oauthApp: { ...oauthApp, name: "", description: "" } }) });
    const answer = await gateway.send(`${path}/oa_1`);
    expect(await answer.json()).toEqual({ ...oauthAppJson, name: "Slack", description: null });
  });

  it("are changed in what is given; null and empty lists take away", async () => {
    const change = async (body: unknown) => {
      const answer = await gateway.send(`${path}/oa_1`, put(body));
      expect(answer.status).toBe(200);
      expect(await answer.json()).toEqual(oauthAppJson);
      return asked().at(-1)?.request;
    };
    const untouched = { clientSecret: "", scopes: [], clearScopes: false, clearAdditionalScopes: false };
    const first = await change({ name: "z" });
    expect(first).toMatchObject({ projectId: "proj_1", oauthAppId: "oa_1", name: "z", ...untouched });
    expect([first?.clientId, first?.description]).toEqual([undefined, undefined]);
    expect(await change({ client_secret: null })).toMatchObject(untouched);
    expect(await change({ client_id: "c", client_secret: "b" })).toMatchObject({ clientId: "c", clientSecret: "b" });
    expect(await change({ description: null, scopes: [], additional_scopes: null })).toMatchObject({
      description: "",
      clearScopes: true,
      clearAdditionalScopes: true,
    });
  });

  it("are deleted, with their accounts when asked; one in use is 400 with the count", async () => {
    expect((await gateway.send(`${path}/oa_1`, { method: "DELETE" })).status).toBe(204);
    expect((await gateway.send(`${path}/oa_1?revoke_accounts=true`, { method: "DELETE" })).status).toBe(204);
    expect(asked().map(({ request }) => request)).toEqual([
      { projectId: "proj_1", oauthAppId: "oa_1", revokeAccounts: false },
      { projectId: "proj_1", oauthAppId: "oa_1", revokeAccounts: true },
    ]);
    expect((await gateway.send(`${path}/oa_1?revoke_accounts=yes`, { method: "DELETE" })).status).toBe(400);
    gateway.changeAccount({
      deleteOauthApp: async () => {
        throw new StatusError("FAILED_PRECONDITION", "OAUTH_APP_IN_USE", "The OAuth app is in use, accounts: 3.");
      },
    });
    const inUse = await gateway.send(`${path}/oa_1`, { method: "DELETE" });
    expect(inUse.status).toBe(400);
    expect(await inUse.json()).toEqual({ error: "The OAuth app is in use, accounts: 3.", code: "OAUTH_APP_IN_USE" });
  });

  it.each([
    ["client_id", { app: "slack", client_secret: "never-to-be-shown" }],
    ["app", { client_id: "a", client_secret: "never-to-be-shown" }],
    ["scopes", { app: "slack", client_id: "a", client_secret: "never-to-be-shown", scopes: "s" }],
  ])("are not made without a right %s: 400 that names it and no secret", async (field, body) => {
    const answer = await gateway.send(path, json(body));
    expect(answer.status).toBe(400);
    const text = await answer.text();
    expect(JSON.parse(text)).toMatchObject({ code: "INVALID_FIELD", details: { violations: [{ field }] } });
    expect(`${text}${gateway.logged.join()}`).not.toContain("never-to-be-shown");
    expect(asked()).toEqual([]);
  });
});

describe("app overrides", () => {
  const override = AppOverride.fromPartial({
    id: "aov_1",
    projectId: "proj_1",
    appSlug: "slack",
    name: "n",
    oauthAppId: "oa_1",
    fields: { instance_name: "dev1" },
    createTime: time,
    updateTime: time,
  });
  const overrideJson = {
    id: "aov_1",
    name: "n",
    app: { ...slackJson, id: "app_slack", name: "Slack", description: null },
    oauth_app_id: "oa_1",
    cfmap: { instance_name: "dev1" },
    owner_id: "proj_1",
    created_at: iso,
    updated_at: iso,
  };
  beforeEach(() =>
    gateway.changeAccount({
      createAppOverride: async () => ({ appOverride: override }),
      getAppOverride: async () => ({ appOverride: { ...override, oauthAppId: "" } }),
      listAppOverrides: async () => ({ appOverrides: [override], nextPageToken: "", totalSize: 1 }),
      updateAppOverride: async () => ({ appOverride: override }),
      deleteAppOverride: async () => ({}),
    }),
  );
  const path = "/v1/connect/proj_1/app_overrides";

  it("are listed by app and shown one by one", async () => {
    const answer = await gateway.send(`${path}?app=slack`);
    expect(await answer.json()).toEqual({
      data: [overrideJson],
      page_info: { count: 1, total_count: 1, start_cursor: null, end_cursor: null },
    });
    const one = await gateway.send(`${path}/ao_1`);
    expect(one.status).toBe(200);
    expect(await one.json()).toEqual({ ...overrideJson, oauth_app_id: null });
    expect(asked()).toMatchObject([
      { method: "listAppOverrides", request: { projectId: "proj_1", appSlug: "slack" } },
      { method: "getAppOverride", request: { projectId: "proj_1", appOverrideId: "ao_1" } },
    ]);
  });

  it("are made", async () => {
    const cfmap = { instance_name: "dev1" };
    const answer = await gateway.send(path, json({ app: "servicenow_oauth_", name: "n", oauth_app_id: "oa_1", cfmap }));
    expect(answer.status).toBe(200);
    expect(await answer.json()).toEqual(overrideJson);
    const request = { projectId: "proj_1", appSlug: "servicenow_oauth_", name: "n", oauthAppId: "oa_1", fields: cfmap };
    expect(asked()).toEqual([{ method: "createAppOverride", request }]);
  });

  it("are changed in what is given; null takes away", async () => {
    const change = async (body: unknown) => {
      expect((await gateway.send(`${path}/ao_1`, put(body))).status).toBe(200);
      return asked().at(-1)?.request;
    };
    const numbers = await change({ cfmap: { a: 1 } });
    expect(numbers).toMatchObject({
      projectId: "proj_1",
      appOverrideId: "ao_1",
      fields: { a: "1" },
      clearFields: false,
    });
    expect([numbers?.oauthAppId, numbers?.name]).toEqual([undefined, undefined]);
    expect(await change({ name: "z" })).toMatchObject({ name: "z", fields: {}, clearFields: false });
    expect(await change({ oauth_app_id: null, cfmap: {} })).toMatchObject({ oauthAppId: "", clearFields: true });
  });

  it("are deleted", async () => {
    expect((await gateway.send(`${path}/ao_1`, { method: "DELETE" })).status).toBe(204);
    expect(asked()).toEqual([{ method: "deleteAppOverride", request: { projectId: "proj_1", appOverrideId: "ao_1" } }]);
  });

  it("with a name that is taken, or values that are none, are 400", async () => {
    gateway.changeAccount({
      createAppOverride: async () => {
        throw invalidField("name", "is the name of another app override");
      },
    });
    const taken = await gateway.send(path, json({ app: "slack", name: "n" }));
    expect(taken.status).toBe(400);
    expect(await taken.json()).toMatchObject({ code: "INVALID_FIELD", details: { violations: [{ field: "name" }] } });
    const wrong = await gateway.send(path, json({ app: "slack", name: "n", cfmap: { a: ["b"] } }));
    expect(wrong.status).toBe(400);
    expect(await wrong.json()).toMatchObject({ details: { violations: [{ field: "cfmap.a" }] } });
  });
});

describe("app categories", () => {
  beforeEach(() =>
    gateway.changeAccount({
      listApps: async ({ pageToken }) =>
        pageToken === ""
          ? { apps: [slack, { ...sendgrid, categories: ["Mail", "Chat"] }], nextPageToken: "more", totalSize: 3 }
          : { apps: [{ ...sendgrid, categories: ["CRM"] }], nextPageToken: "", totalSize: 3 },
    }),
  );

  it("are those of all apps, each once, under an id that stays the same", async () => {
    const answer = await gateway.send("/v1/connect/app_categories");
    const categories = (await answer.json()) as { id: string; name: string }[];
    expect(categories).toEqual(
      ["Chat", "CRM", "Mail"].map((name) => ({
        id: expect.stringMatching(/^appcat_[0-9a-f]{16}$/),
        name,
        description: null,
      })),
    );
    expect(new Set(categories.map(({ id }) => id)).size).toBe(3);
    expect(await (await gateway.send("/v1/app_categories")).json()).toEqual(categories);
    const crm = await gateway.send(`/v1/connect/app_categories/${categories[1]?.id}`);
    expect(await crm.json()).toEqual(categories[1]);
    const absent = await gateway.send("/v1/connect/app_categories/appcat_1");
    expect(absent.status).toBe(404);
    expect(await absent.json()).toEqual({ error: "No such app category.", code: "APP_CATEGORY_NOT_FOUND" });
  });

  it("select apps by id and by name; an id that none has selects nothing", async () => {
    const [chat] = (await (await gateway.send("/v1/connect/app_categories")).json()) as { id: string }[];
    await gateway.send(`/v1/connect/apps?category_ids=${chat?.id}&category_ids=appcat_1&category_ids=Mail`);
    expect(asked().at(-1)?.request).toMatchObject({ categories: ["Chat", "appcat_1", "Mail"] });
  });
});
