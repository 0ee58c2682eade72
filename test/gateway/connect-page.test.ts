// The connect page and the OAuth callback as a browser without scripts uses them.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { notFound, StatusError } from "#libs/errors.ts";
import { App } from "#proto/deputy/account/v1/apps.ts";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { connectToken, type GatewayFixture, sendgrid, startGatewayFixture, validToken } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

const path = "/_static/connect.html";
const link = `${path}?token=${connectToken}&app=slack&connectLink=true`;
const asked = (method: string) => gateway.asked.filter((call) => call.method === method);

function submit(fields: Record<string, string>, headers: Record<string, string> = {}): Promise<Response> {
  const body = new URLSearchParams({ token: connectToken, ...fields });
  return gateway.sendBare(path, { method: "POST", body, headers });
}

function forKeys(change: Parameters<typeof validToken>[0] = {}) {
  gateway.changeAccount({ validateConnectToken: async () => validToken({ app: sendgrid, ...change }) });
}

describe("the page", () => {
  it("says who connects which app for whom, and its form carries the parameters on", async () => {
    const answer = await gateway.sendBare(`${link}&oauthAppId=oa_1&accountId=apn_9&oauthScopeProfile=read_only`);
    const html = await answer.text();
    expect(answer.status).toBe(200);
    expect(answer.headers.get("content-type")).toBe("text/html; charset=utf-8");
    for (const text of ["Connect Slack", "Acme &amp; Co", "user-1", "Continue to Slack"]) expect(html).toContain(text);
    expect(html).toContain('<form method="post" action="/_static/connect.html"');
    for (const [name, value] of [
      ["token", connectToken],
      ["app", "slack"],
      ["oauthAppId", "oa_1"],
      ["accountId", "apn_9"],
      ["oauthScopeProfile", "read_only"],
    ]) {
      expect(html).toContain(`<input type="hidden" name="${name}" value="${value}">`);
    }
    expect(asked("validateConnectToken")[0]?.request).toMatchObject({ appSlug: "slack", accountId: "apn_9" });
  });

  it("is kept nowhere, tells its address to nobody, runs no script, and stands in no frame", async () => {
    const { headers } = await gateway.sendBare(link);
    expect(headers.get("cache-control")).toBe("no-store");
    expect(headers.get("referrer-policy")).toBe("no-referrer");
    const policy = headers.get("content-security-policy") ?? "";
    expect(policy).toContain("default-src 'none'");
    expect(policy).toContain("frame-ancestors 'none'");
    expect(policy).not.toContain("script");
  });

  it("may stand in frames of the token's origins alone; a text that is no origin adds nothing to the policy", async () => {
    const allowedOrigins = ["https://app.example:8443", "https://a;script-src *", "https://b,c"];
    gateway.changeAccount({ validateConnectToken: async () => validToken({ allowedOrigins }) });
    const policy = (await gateway.sendBare(link)).headers.get("content-security-policy");
    expect(policy).toMatch(/; frame-ancestors https:\/\/app\.example:8443$/);
  });

  it("escapes what it shows", async () => {
    forKeys({ projectAppName: '<script>alert("x")</script>', externalUserId: '"><img src=x>' });
    const html = await (await gateway.sendBare(link)).text();
    expect(html).not.toMatch(/<script|<img src=x|SendGrid <x>/);
    expect(html).toContain("&lt;script&gt;");
  });

  it("takes nothing that an app's author, a product or a link brings for markup", async () => {
    const evil = `"'><script src=//evil.example></script>`;
    const app = {
      ...{ ...sendgrid, name: evil, imageUrl: `javascript:alert(1)${evil}` },
      customFields: [
        { ...sendgrid.customFields[0], name: "region", label: evil, description: evil, defaultValue: evil },
      ],
    };
    const projectSupportEmail = `x@y.example${evil}`;
    const valid = validToken({
      app: App.fromPartial(app),
      projectSupportEmail,
      allowedOrigins: ["https://app.example"],
    });
    gateway.changeAccount({
      validateConnectToken: async () => valid,
      createAccount: async () => {
        throw new StatusError("FAILED_PRECONDITION", "KEY_TEST_FAILED", evil);
      },
    });
    const marked = encodeURIComponent(evil);
    const pages = [
      await gateway.sendBare(`${path}?token=${connectToken}&app=x&accountId=${marked}&oauthAppId=${marked}`),
      await submit({ accountId: evil, "field.region": evil }, { "sec-fetch-site": "same-origin" }),
    ];
    for (const page of pages) {
      const html = await page.text();
      expect(html).toContain("&lt;script src");
      expect(html.match(/<script[^>]*>/g)).toEqual([
        expect.stringMatching(/^<script src="\/_static\/connect.js" data-role/),
      ]);
      expect(page.headers.get("content-security-policy")).toContain("script-src 'self';");
    }
  });

  it("asks for the fields of an app with keys, secret ones as passwords", async () => {
    forKeys();
    const html = await (await gateway.sendBare(link)).text();
    expect(html).toMatch(/<input id="field.region" name="field.region" type="text" value="eu"/);
    expect(html).toMatch(/<input id="field.api_key" name="field.api_key" type="password" value="" required/);
    expect(html).toContain("From the settings.");
  });

  // Of a token that is good for nothing the account service tells nothing else either.
  it.each([
    ["In whatever words: no.", "", "This link has expired."],
    ["Its account's token is invalid.", "proj_1", "Its account&#39;s token is invalid."],
    ["App not found. Please check your app id.", "proj_1", "App not found. Please check your app id."],
  ])("shows %j with the project %j as %j", async (error, projectId, text) => {
    const refused = validToken({ valid: false, error, projectId, app: undefined });
    gateway.changeAccount({ validateConnectToken: async () => refused });
    const answer = await gateway.sendBare(link);
    expect(answer.status).toBe(400);
    expect(await answer.text()).toContain(text);
  });

  it("without a token, and while the account service fails, is a page too", async () => {
    expect(await (await gateway.sendBare(path)).text()).toContain("This link has expired.");
    gateway.changeAccount({ validateConnectToken: () => Promise.reject(new Error("hunter2")) });
    const answer = await gateway.sendBare(link);
    const html = await answer.text();
    expect([answer.status, answer.headers.get("content-type")]).toEqual([500, "text/html; charset=utf-8"]);
    expect(html).toContain("Connection failed. Please retry or contact support.");
    expect(html).not.toContain("hunter2");
  });

  it("has its style sheet", async () => {
    const answer = await gateway.sendBare("/_static/connect.css");
    expect([answer.status, answer.headers.get("content-type")]).toEqual([200, "text/css; charset=utf-8"]);
  });
});

describe("the form of an app with OAuth", () => {
  it("starts the connection with the connect token and sends the browser, and a new binding, to the provider", async () => {
    const answers = [await submit({ app: "slack", oauthScopeProfile: "read_only" }), await submit({ app: "slack" })];
    for (const answer of answers) {
      expect(answer.status).toBe(303);
      expect(answer.headers.get("location")).toBe("https://provider.example/auth?state=the-state&code_challenge=x");
      expect(answer.headers.get("cache-control")).toBe("no-store");
      expect(answer.headers.get("referrer-policy")).toBe("no-referrer");
    }
    const started = asked("startConnection");
    expect(started[0]?.call.token).toBe(connectToken);
    expect(started[0]?.request).toMatchObject({ appSlug: "slack", scopeProfile: "read_only" });
    const bindings = started.map(({ request }) => String(request.browserBinding));
    expect(bindings[0]).toMatch(/^[\w-]{43}$/);
    expect(bindings[1]).not.toBe(bindings[0]);
    const cookie = answers[0]?.headers.get("set-cookie") ?? "";
    expect(cookie).toMatch(/^deputy_connection_[0-9a-f]{16}=/);
    expect(cookie).toContain(`=${bindings[0]};`);
    expect(cookie).toMatch(/; Path=\/; Max-Age=(600|59\d); HttpOnly; SameSite=Lax$/);
  });

  it("is refused when another site sends it", async () => {
    for (const site of ["cross-site", "same-site", "none"]) {
      expect((await submit({ app: "slack" }, { "sec-fetch-site": site })).status).toBe(403);
    }
    expect(asked("startConnection")).toEqual([]);
    expect((await submit({ app: "slack" }, { "sec-fetch-site": "same-origin" })).status).toBe(303);
  });

  it("says that the link has expired when the token was used meanwhile", async () => {
    const used = new StatusError("UNAUTHENTICATED", "CONNECT_TOKEN_INVALID", "The connect token is invalid.");
    gateway.changeAccount({ startConnection: () => Promise.reject(used) });
    const answer = await submit({ app: "slack" });
    expect(answer.status).toBe(401);
    expect(await answer.text()).toContain("This link has expired.");
  });
});

describe("the form of an app with keys", () => {
  const fields = { app: "sendgrid", "field.region": "us", "field.api_key": "s3cret-key" };

  it("creates the account and shows that it is connected", async () => {
    forKeys();
    const answer = await submit({ ...fields, accountId: "apn_9", "field.unknown": "x" });
    expect(answer.status).toBe(200);
    expect(await answer.text()).toContain("Your account is connected.");
    const [created] = asked("createAccount");
    expect(created?.call.token).toBe(connectToken);
    expect(created?.request).toMatchObject({
      externalUserId: "user-1",
      appSlug: "sendgrid",
      accountId: "apn_9",
      credential: { $case: "fields", value: { values: { region: "us", api_key: "s3cret-key" } } },
    });
  });

  it("asks for and sends on only what an app override leaves open", async () => {
    forKeys({ appOverrideId: "aov_1", appOverrideFieldNames: ["region"] });
    const html = await (await gateway.sendBare(`${link}&appOverrideId=aov_1`)).text();
    expect(html).toContain('name="field.api_key"');
    expect(html).not.toContain('name="field.region"');
    expect(html).toContain('name="appOverrideId" value="aov_1"');
    await submit({ ...fields, appOverrideId: "aov_1" });
    expect(asked("validateConnectToken").map(({ request }) => request)).toMatchObject([
      { appOverrideId: "aov_1" },
      { appOverrideId: "aov_1" },
    ]);
    expect(asked("createAccount")[0]?.request).toMatchObject({
      appOverrideId: "aov_1",
      credential: { value: { values: { api_key: "s3cret-key" } } },
    });
  });

  it("goes on to the product's own page when the token names one", async () => {
    forKeys({ successRedirectUri: "https://app.example/done" });
    const answer = await submit(fields);
    expect([answer.status, answer.headers.get("location")]).toEqual([303, "https://app.example/done"]);
  });

  it("asks again for what is wrong, and sends no secret back", async () => {
    const violations = [{ field: "fields.api_key", description: "has not the form that this app asks for" }];
    const fault = new StatusError("INVALID_ARGUMENT", "INVALID_FIELD", "fields.api_key: ...", { violations });
    gateway.changeAccount({
      validateConnectToken: async () => validToken({ app: sendgrid }),
      createAccount: () => Promise.reject(fault),
    });
    const answer = await submit(fields);
    const html = await answer.text();
    expect(answer.status).toBe(400);
    expect(html).toContain("API key has not the form that this app asks for.");
    expect(html).toMatch(/name="field.region" type="text" value="us"/);
    expect(html).not.toContain("s3cret-key");
    expect(gateway.logged.join("")).not.toContain("s3cret-key");
  });
});

describe("the callback", () => {
  const callback = "/oauth/callback?state=the-state&code=the-code&iss=https%3A%2F%2Fprovider.example";

  async function cookie(): Promise<string> {
    const started = await submit({ app: "slack" });
    return (started.headers.get("set-cookie") ?? "").split(";")[0] ?? "";
  }

  it("completes with what the redirect brought and the browser's binding, and shows a reload the same", async () => {
    const headers = { cookie: `other=1; ${await cookie()}; more=2` };
    for (let round = 0; round < 2; round += 1) {
      const answer = await gateway.sendBare(callback, { headers });
      expect(answer.status).toBe(200);
      expect(await answer.text()).toContain("Your account is connected.");
      expect(answer.headers.has("set-cookie")).toBe(false);
    }
    const completed = asked("completeConnection");
    expect(completed).toHaveLength(2);
    expect(completed[0]?.call.token).toBeUndefined();
    expect(completed[0]?.request).toEqual({
      state: "the-state",
      code: "the-code",
      error: "",
      errorDescription: "",
      issuer: "https://provider.example",
      parameters: {},
      browserBinding: asked("startConnection")[0]?.request.browserBinding,
    });
  });

  it("asks nobody without the binding of this very connection", async () => {
    const own = await cookie();
    for (const [url, held] of [
      [callback, ""],
      [callback.replace("the-state", "another-state"), own],
      ["/oauth/callback?code=x", own],
      [`${callback}&state=the-state`, own],
    ] as const) {
      const answer = await gateway.sendBare(url, { headers: { cookie: held } });
      expect(answer.status).toBe(400);
    }
    expect(asked("completeConnection")).toEqual([]);
  });

  it("goes where the account service says", async () => {
    const headers = { cookie: await cookie() };
    const redirectUri = "https://app.example/done?x=1";
    gateway.changeAccount({
      completeConnection: async () => ({ connection: undefined, redirectUri, verifier: "", allowedOrigins: [] }),
    });
    const answer = await gateway.sendBare(callback, { headers });
    expect([answer.status, answer.headers.get("location")]).toEqual([303, redirectUri]);
    expect(answer.headers.get("referrer-policy")).toBe("no-referrer");
  });

  it("says why a connection failed", async () => {
    const headers = { cookie: await cookie() };
    gateway.changeAccount({
      completeConnection: async () => ({
        connection: {
          id: "con_1",
          state: ConnectionState.FAILED,
          appSlug: "slack",
          externalUserId: "user-1",
          accountId: "",
          error: "You said no at the provider.",
          createTime: undefined,
          expireTime: undefined,
        },
        redirectUri: "",
        verifier: "",
        allowedOrigins: [],
      }),
    });
    const answer = await gateway.sendBare("/oauth/callback?state=the-state&error=access_denied", { headers });
    const html = await answer.text();
    expect(answer.status).toBe(400);
    expect(html).toContain("Connection failed.");
    expect(html).toContain("You said no at the provider.");
    expect(asked("completeConnection")[0]?.request).toMatchObject({ error: "access_denied", code: "" });
  });

  it.each([
    ["that is gone", notFound("connection"), 404],
    ["of another browser", new StatusError("PERMISSION_DENIED", "BROWSER_MISMATCH", "Another browser."), 403],
  ])("of a connection %s says that the session has expired", async (_case, refusal, status) => {
    const headers = { cookie: await cookie() };
    gateway.changeAccount({ completeConnection: () => Promise.reject(refusal) });
    const answer = await gateway.sendBare(callback, { headers });
    expect(answer.status).toBe(status);
    expect(await answer.text()).toContain("This session has expired.");
  });

  it("leaves no state, code or binding in the log", async () => {
    const held = await cookie();
    await gateway.sendBare(callback, { headers: { cookie: held } });
    await expect.poll(() => gateway.logged.length).toBe(2);
    for (const secret of ["the-state", "the-code", held.split("=")[1] ?? "-", connectToken]) {
      expect(gateway.logged.join("")).not.toContain(secret);
    }
  });
});

it("a binding over https is for this host alone and never sent in the clear", async () => {
  const secure = await startGatewayFixture("https://connect.example");
  try {
    const body = new URLSearchParams({ token: connectToken, app: "slack" });
    const started = await secure.sendBare(path, { method: "POST", body });
    const cookie = started.headers.get("set-cookie") ?? "";
    expect(cookie).toMatch(/^__Host-deputy_connection_[0-9a-f]{16}=.*; Path=\/; .*; Secure$/);
    const headers = { cookie: cookie.split(";")[0] ?? "" };
    const ended = await secure.sendBare("/oauth/callback?state=the-state&code=c", { headers });
    expect(ended.status).toBe(200);
  } finally {
    await secure.stop();
  }
});
