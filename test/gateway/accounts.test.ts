// Accounts and apps over REST: requests as existing clients send them, the calls that they become, and the JSON that comes back.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { AccountHealth } from "#proto/deputy/account/v1/accounts.ts";
import { AppOrder } from "#proto/deputy/account/v1/apps.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { accountOf, connectToken, type GatewayFixture, json, startGatewayFixture, time } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

const iso = time.toISOString();
const withConnectToken = { headers: { authorization: `Bearer ${connectToken}` } };

/** What the account service was asked, without what it was asked to show the app. */
function asked(): { method: string; request: Readonly<Record<string, unknown>> }[] {
  return gateway.asked.filter(({ method }) => method !== "getApp").map(({ method, request }) => ({ method, request }));
}

describe("accounts", () => {
  const jane = {
    id: "apn_1",
    name: "jane@example.com",
    external_id: "user-1",
    healthy: true,
    dead: false,
    created_at: iso,
    updated_at: iso,
    authorized_scopes: ["read"],
    expires_at: null,
    error: null,
    last_refreshed_at: null,
    next_refresh_at: null,
    app: {
      id: "oa_1",
      name_slug: "slack",
      auth_type: "oauth",
      custom_fields_json: "[]",
      connect: { proxy_enabled: true, allowed_domains: ["slack.com"], base_proxy_target_url: "https://slack.com" },
    },
  };

  it("are listed by the filters that clients send, page by page", async () => {
    const path =
      "/v1/connect/proj_1/accounts?external_user_id=user%201%2F%C3%A9%2B&oauth_app_id=oa_1&after=a&before=b&limit=5&app=slack&include_credentials=true";
    const answer = await gateway.send(path);
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({
      data: [{ id: "apn_2", app: { id: null, name_slug: "gone" } }],
      page_info: { count: 1, total_count: 2, start_cursor: null, end_cursor: null },
    });
    expect(asked()[0]).toMatchObject({
      method: "listAccounts",
      request: {
        projectId: "proj_1",
        environment: Environment.DEVELOPMENT,
        externalUserId: "user 1/é+",
        oauthAppId: "oa_1",
        appSlug: "slack",
        pageSize: 5,
        pageToken: "a",
      },
    });
  });

  it("have an end_cursor on each page but the last", async () => {
    const first = (await (await gateway.send("/v1/connect/proj_1/accounts")).json()) as {
      page_info: { end_cursor: string };
    };
    expect(first).toMatchObject({ data: [jane], page_info: { count: 1, total_count: 2, end_cursor: "next" } });
    const next = await gateway.send(`/v1/connect/proj_1/accounts?after=${first.page_info.end_cursor}`);
    expect(await next.json()).toMatchObject({ page_info: { end_cursor: null } });
  });

  it("of one user come as a bare array, all pages of it", async () => {
    const answer = await gateway.send(
      "/v1/connect/proj_1/users/user%201%2F%C3%A9/accounts?include_credentials=true&app=app_slack",
    );
    expect(await answer.json()).toMatchObject([{ id: "apn_1" }, { id: "apn_2" }]);
    expect(asked()).toMatchObject([
      { request: { externalUserId: "user 1/é", appSlug: "slack", pageToken: "" } },
      { request: { externalUserId: "user 1/é", appSlug: "slack", pageToken: "next" } },
    ]);
  });

  it("are retrieved one by one, not wrapped", async () => {
    const answer = await gateway.send("/v1/connect/proj_1/accounts/apn_1?include_credentials=true");
    expect(await answer.json()).toMatchObject(jane);
    const absent = await gateway.send("/v1/connect/proj_1/accounts/apn_9");
    expect([absent.status, await absent.json()]).toEqual([
      404,
      { error: "No such account.", code: "ACCOUNT_NOT_FOUND" },
    ]);
  });

  it("that are dead say so", async () => {
    gateway.changeAccount({
      getAccount: async () => ({ account: accountOf({ health: AccountHealth.DEAD, error: "Connect again." }) }),
    });
    const answer = await gateway.send("/v1/connect/proj_1/accounts/apn_1");
    expect(await answer.json()).toMatchObject({ healthy: false, dead: true, error: "Connect again." });
  });

  it("are created with the right of the connect token in the body", async () => {
    const body = {
      app_slug: "sendgrid",
      cfmap_json: '{"api_key":"k"}',
      connect_token: connectToken,
      name: "n",
      account_id: "apn_1",
      app_override_id: "ao_1",
    };
    const path = "/v1/connect/proj_1/accounts?external_user_id=user-1&oauth_app_id=oa_1";
    const answer = await gateway.send(path, { ...json(body), headers: { ...json("").headers } });
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({ id: "apn_1", app: { id: "app_sendgrid", auth_type: "keys" } });
    const [{ call, request } = { call: undefined, request: {} }] = gateway.asked;
    expect(call?.token).toBe(connectToken);
    expect(request).toMatchObject({
      appSlug: "sendgrid",
      externalUserId: "user-1",
      oauthAppId: "oa_1",
      credential: { $case: "fields", value: { values: { api_key: "k" } } },
      name: "n",
      accountId: "apn_1",
      appOverrideId: "ao_1",
    });
  });

  it.each(["not json s3cret", '"s3cret"', '{"a":{"b":"s3cret"}}'])(
    "are not created from cfmap_json %s, which is not quoted",
    async (cfmap_json) => {
      const answer = await gateway.send("/v1/connect/proj_1/accounts", json({ app_slug: "sendgrid", cfmap_json }));
      const text = await answer.text();
      expect(answer.status).toBe(400);
      expect(text).toContain("cfmap_json");
      expect(text).not.toContain("s3cret");
    },
  );

  it("are deleted with 204 and no body", async () => {
    const answer = await gateway.send("/v1/connect/proj_1/accounts/apn_1", { method: "DELETE" });
    expect([answer.status, await answer.text()]).toEqual([204, ""]);
    expect(asked()).toMatchObject([{ method: "deleteAccount", request: { accountId: "apn_1", projectId: "proj_1" } }]);
  });

  it("of an app are all revoked, by slug or id", async () => {
    const answer = await gateway.send("/v1/connect/proj_1/apps/app_slack/accounts", { method: "DELETE" });
    expect(answer.status).toBe(204);
    expect(asked()).toMatchObject([
      { method: "revokeAllAccounts", request: { target: { $case: "appSlug", value: "slack" }, dryRun: false } },
    ]);
  });

  it("of an app are deleted one by one for a connect token, which reaches its own user's alone", async () => {
    const answer = await gateway.sendBare("/v1/connect/apps/slack/accounts", { method: "DELETE", ...withConnectToken });
    expect(answer.status).toBe(204);
    expect(asked().map(({ method }) => method)).toEqual([
      "listAccounts",
      "listAccounts",
      "deleteAccount",
      "deleteAccount",
    ]);
    expect(asked()[0]?.request).toMatchObject({ externalUserId: "user-1", appSlug: "slack" });
  });

  it.each([
    ["GET", "/v1/connect/proj_1/users//accounts", "external_user_id"],
    ["GET", "/v1/connect/users//accounts", "external_user_id"],
    ["DELETE", "/v1/connect/proj_1/apps//accounts", "app_id"],
    ["DELETE", "/v1/connect/apps//accounts", "app_id"],
    ["DELETE", "/v1/connect/accounts/", "account_id"],
  ])("of nobody in particular are not everybody's: %s %s", async (method, path, field) => {
    for (const token of [gateway.token, connectToken]) {
      const answer = await gateway.send(path, { method, headers: { authorization: `Bearer ${token}` } });
      expect([answer.status, await answer.json()]).toMatchObject([400, { error: `${field}: is required` }]);
    }
    expect(gateway.asked).toEqual([]);
  });

  it("are not created with a connect token that cannot be sent, which is not logged", async () => {
    const body = { app_slug: "sendgrid", cfmap_json: "{}", connect_token: `${connectToken}\n` };
    expect((await gateway.send("/v1/connect/proj_1/accounts", json(body))).status).toBe(401);
    expect(gateway.logged.join()).not.toContain(connectToken);
  });

  it("are not deleted when the revocation breaks off", async () => {
    gateway.changeAccount({
      revokeAllAccounts: async function* () {
        yield { receipt: undefined, totalSize: 2 };
        throw new StatusError("UNAVAILABLE", "VAULT_UNREACHABLE", "The vault cannot be reached.");
      },
    });
    const answer = await gateway.send("/v1/connect/proj_1/apps/slack/accounts", { method: "DELETE" });
    expect(answer.status).toBe(503);
    expect(answer.headers.get("retry-after")).toBe("1");
  });
});

describe("a user", () => {
  it("is erased, whatever letters its id has, with 204", async () => {
    const answer = await gateway.send("/v1/connect/proj_1/users/user%201%2F%C3%A9", { method: "DELETE" });
    expect([answer.status, await answer.text()]).toEqual([204, ""]);
    const [first] = asked();
    expect(first).toMatchObject({
      method: "deleteUser",
      request: { projectId: "proj_1", environment: 1, externalUserId: "user 1/é" },
    });
  });

  it("without an id is nobody, and not everybody", async () => {
    for (const path of ["/v1/connect/proj_1/users/", "/v1/connect/users/"]) {
      expect((await gateway.send(path, { method: "DELETE" })).status).toBeGreaterThanOrEqual(400);
    }
    expect(asked()).toEqual([]);
  });
});

describe("a connect token", () => {
  it.each([
    ["GET", "/v1/connect/accounts?app=slack", "listAccounts"],
    ["GET", "/v1/connect/accounts/apn_1", "getAccount"],
    ["GET", "/v1/connect/users/user-1/accounts", "listAccounts"],
    ["DELETE", "/v1/connect/accounts/apn_1", "deleteAccount"],
    ["DELETE", "/v1/connect/users/user-1", "deleteUser"],
    ["GET", "/v1/connect/apps", "listApps"],
  ])("serves for %s %s without a project or an environment", async (method, path, rpc) => {
    const answer = await gateway.sendBare(path, { method, ...withConnectToken });
    expect(answer.status).toBeLessThan(300);
    const [first] = asked();
    expect(first?.method).toBe(rpc);
    if (rpc !== "listApps") expect(first?.request).toMatchObject({ projectId: "proj_1", externalUserId: "user-1" });
  });
});

it("a connect token creates an account without naming a project", async () => {
  const body = { app_slug: "sendgrid", cfmap_json: "{}", connect_token: connectToken };
  const answer = await gateway.sendBare("/v1/connect/accounts", json(body));
  expect(answer.status).toBe(200);
  expect(asked()[0]?.request).toMatchObject({ projectId: "proj_1", externalUserId: "user-1", appSlug: "sendgrid" });
});

describe("apps", () => {
  it("are listed in the order asked for", async () => {
    const query =
      "after=a&limit=2&q=sl&sort_key=name_slug&sort_direction=desc&category_ids=c1&category_ids=c2&has_components=true";
    for (const path of ["/v1/connect/apps", "/v1/apps"]) {
      gateway.asked.length = 0;
      const answer = await gateway.send(`${path}?${query}`);
      expect(await answer.json()).toMatchObject({
        data: [{ id: "app_slack" }, { id: "app_sendgrid" }],
        page_info: { count: 2, end_cursor: null },
      });
      expect(asked()[0]?.request).toMatchObject({
        query: "sl",
        order: AppOrder.SLUG,
        descending: true,
        categories: ["c1", "c2"],
        pageSize: 2,
        pageToken: "a",
      });
    }
  });

  it.each(["constructor", "__proto__", "id"])("are not listed in the order %s", async (order) => {
    expect((await gateway.send(`/v1/apps?sort_key=${order}`)).status).toBe(400);
  });

  it("are retrieved wrapped in data, with their fields as JSON in a text", async () => {
    const answer = await gateway.send("/v1/connect/apps/sendgrid");
    const { data } = (await answer.json()) as { data: { custom_fields_json: string } };
    expect(JSON.parse(data.custom_fields_json)).toEqual([
      { name: "region", label: "Region", description: "", default: "eu", optional: false, type: "string" },
      {
        name: "api_key",
        label: "API key",
        description: "From the settings.",
        default: null,
        optional: false,
        type: "password",
      },
    ]);
  });
});
