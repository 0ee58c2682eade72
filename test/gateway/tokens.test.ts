// Access tokens and connect tokens over REST: requests as existing clients send them, and what comes back.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { invalidField } from "#libs/errors.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { connectToken, type GatewayFixture, json, startGatewayFixture, time } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

describe("POST /v1/oauth/token", () => {
  const grant = { client_id: "cid", client_secret: "csecret", grant_type: "client_credentials" };
  const form = (fields: Record<string, string>) => ({ method: "POST", body: new URLSearchParams(fields) });

  it("gives an access token for JSON, for a form, and for HTTP Basic", async () => {
    const basic = `Basic ${Buffer.from("cid:csecret").toString("base64")}`;
    const answers = [
      await gateway.sendBare("/v1/oauth/token", json(grant)),
      await gateway.sendBare("/v1/oauth/token", form(grant)),
      await gateway.sendBare("/v1/oauth/token", {
        ...form({ grant_type: "client_credentials" }),
        headers: { authorization: basic },
      }),
    ];
    for (const answer of answers) {
      expect(answer.status).toBe(200);
      expect(answer.headers.get("cache-control")).toBe("no-store");
      expect(await answer.json()).toEqual({ access_token: "the-jwt", token_type: "Bearer", expires_in: 3600 });
    }
    for (const { request } of gateway.asked) {
      expect(request.grant).toMatchObject({ value: { clientId: "cid", clientSecret: "csecret" } });
    }
  });

  it.each([
    ["a wrong secret", { ...grant, client_secret: "y" }, 401, "invalid_client"],
    ["no secret", { ...grant, client_secret: undefined }, 401, "invalid_client"],
    ["another grant", { ...grant, grant_type: "password" }, 400, "unsupported_grant_type"],
    ["no grant", {}, 400, "invalid_request"],
  ])("refuses %s as RFC 6749 says", async (_name, body, status, error) => {
    const answer = await gateway.sendBare("/v1/oauth/token", json(body));
    expect([answer.status, await answer.json()]).toEqual([status, { error }]);
  });

  it("says invalid_scope when the scope is more than the client may have", async () => {
    gateway.changeAccount({
      issueAccessToken: () => Promise.reject(invalidField("scope", "is more than the client may have")),
    });
    const answer = await gateway.sendBare("/v1/oauth/token", json({ ...grant, scope: "connect:*" }));
    expect([answer.status, await answer.json()]).toEqual([400, { error: "invalid_scope" }]);
  });
});

describe("connect tokens", () => {
  it("are made from the body that clients send", async () => {
    const body = {
      external_user_id: "user-1",
      allowed_origins: ["https://app.example"],
      success_redirect_uri: "https://a/s",
      error_redirect_uri: "https://a/e",
      webhook_uri: "https://a/w",
      expires_in: 600,
      scope: "connect:accounts:read",
      allow_progressive_scopes: true,
      app_id: "slack",
      oauth_app_id: "oa_1",
    };
    const answer = await gateway.send("/v1/connect/proj_1/tokens", json(body));
    expect(answer.status).toBe(200);
    expect(await answer.json()).toEqual({
      token: connectToken,
      expires_at: time.toISOString(),
      connect_link_url: "http://gateway/_static/connect.html?token=x&connectLink=true",
    });
    expect(gateway.asked).toMatchObject([
      {
        method: "createConnectToken",
        request: {
          projectId: "proj_1",
          environment: Environment.DEVELOPMENT,
          externalUserId: "user-1",
          allowedOrigins: ["https://app.example"],
          successRedirectUri: "https://a/s",
          errorRedirectUri: "https://a/e",
          webhookUri: "https://a/w",
          lifetimeSeconds: 600,
          scope: "connect:accounts:read",
          allowProgressiveScopes: true,
          appSlug: "slack",
          oauthAppId: "oa_1",
        },
      },
    ]);
  });

  it.each([
    [{ expires_in: 600 }, "external_user_id"],
    [{ external_user_id: "u", expires_in: 0 }, "expires_in"],
    [{ external_user_id: "u", expires_in: "600" }, "expires_in"],
    [{ external_user_id: "u", allowed_origins: "https://a" }, "allowed_origins"],
    [[], "body"],
  ])("with %j are refused with 400 naming %s", async (body, field) => {
    const answer = await gateway.send("/v1/connect/proj_1/tokens", json(body));
    expect(answer.status).toBe(400);
    expect((await answer.json()) as object).toMatchObject({ error: expect.stringMatching(`^${field}: `) });
    expect(gateway.asked).toEqual([]);
  });

  it("are refused with 400 when the body is not JSON, without quoting it", async () => {
    const answer = await gateway.send("/v1/connect/proj_1/tokens", { ...json(""), body: '{"k": hunter2' });
    expect([answer.status, await answer.json()]).toMatchObject([400, { error: "body: is not JSON" }]);
  });

  it("cannot be made with a connect token", async () => {
    const { headers } = json("");
    const init = {
      ...json({ external_user_id: "u" }),
      headers: { ...headers, authorization: `Bearer ${connectToken}` },
    };
    expect((await gateway.sendBare("/v1/connect/proj_1/tokens", init)).status).toBe(403);
  });

  it("are validated without looking at the bearer that clients send", async () => {
    const path = `/v1/connect/tokens/${connectToken}/validate?app_id=slack&account_id=apn_1&oauth_app_id=oa_1&app_override_id=ao_1`;
    const answer = await gateway.send(path, { headers: { authorization: "Bearer nonsense" } });
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({
      success: true,
      error: null,
      app: { name_slug: "slack" },
      project_id: "proj_1",
      project_environment: "development",
      project_app_name: "Acme & Co",
      project_support_email: null,
      app_override_field_names: [],
    });
    expect(gateway.asked).toMatchObject([
      {
        method: "validateConnectToken",
        request: { connectToken, appSlug: "slack", accountId: "apn_1", oauthAppId: "oa_1", appOverrideId: "ao_1" },
      },
    ]);
  });
});
