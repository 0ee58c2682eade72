// Connect tokens as they are made and asked about: what is refused, what is kept, and what one says of itself.
import { expect, test } from "vitest";
import { call, development, newConnectToken, newOauthApp, newProject, production, startAccount } from "./harness.ts";

const account = await startAccount();
const { api, gateway, clock, db } = account;
const acme = await newProject(account);
const oauthAppId = await newOauthApp(account, acme.projectId);

test("makes a connect token whose text is kept nowhere, with its link", async () => {
  const request = { environment: development, externalUserId: "ann", appSlug: "sandbox", lifetimeSeconds: 60 } as const;
  const { token, expireTime, connectLinkUrl } = await api.createConnectToken(request, call(acme.token));
  expect(token).toMatch(/^ctok_[0-9a-f]{32}$/);
  expect(connectLinkUrl).toBe(
    `https://deputy.example:8443/_static/connect.html?token=${token}&connectLink=true&app=sandbox`,
  );
  expect(Math.abs((expireTime?.getTime() ?? 0) - Date.now() - 60_000)).toBeLessThan(5_000);
  const rows = await db.selectFrom("connectTokens").selectAll().execute();
  const text = JSON.stringify(rows.map((row) => ({ ...row, tokenDigest: row.tokenDigest.toString("latin1") })));
  expect(text).not.toContain(token.slice("ctok_".length));
});

test("appends no app to the link of a token that names none", async () => {
  const { connectLinkUrl } = await api.createConnectToken(
    { environment: development, externalUserId: "ann" },
    call(acme.token),
  );
  expect(connectLinkUrl).toMatch(/&connectLink=true$/);
});

test.each([
  ["success_redirect_uri", { successRedirectUri: "http://app.example/done" }],
  ["success_redirect_uri", { environment: production, successRedirectUri: "http://localhost/done" } as const],
  ["error_redirect_uri", { errorRedirectUri: "javascript:alert(1)" }],
  ["error_redirect_uri", { errorRedirectUri: "/relative" }],
  ["success_redirect_uri", { successRedirectUri: "https://app.example/\r\nset-cookie: a=b" }],
  ["success_redirect_uri", { successRedirectUri: "https://app.example/\u4e00" }],
  ["error_redirect_uri", { errorRedirectUri: "https://user:pass@app.example/" }],
  ["scope", { scope: "*" }],
  ["scope", { scope: "connect:accounts:read admin" }],
  ["allowed_origins", { allowedOrigins: ["https://app.example/path"] }],
  ["lifetime_seconds", { lifetimeSeconds: 14_401 }],
  ["external_user_id", { externalUserId: "x".repeat(251) }],
])("refuses a connect token with a wrong %s", async (field, more) => {
  await expect(newConnectToken(account, acme.token, more)).rejects.toMatchObject({
    code: "INVALID_ARGUMENT",
    violations: [{ field }],
  });
});

test("takes plain http redirects to this machine in development, and https everywhere", async () => {
  const local = { successRedirectUri: "http://127.0.0.1:3000/done", errorRedirectUri: "http://localhost/oops?x=1" };
  expect(await newConnectToken(account, acme.token, local)).toMatch(/^ctok_/);
  const secure = { environment: production, successRedirectUri: "https://app.example/done" } as const;
  expect(await newConnectToken(account, acme.token, secure)).toMatch(/^ctok_/);
});

test("refuses a token for an app or OAuth app that is not there", async () => {
  const make = (more: object) => newConnectToken(account, acme.token, more);
  await expect(make({ appSlug: "nothing" })).rejects.toMatchObject({ code: "NOT_FOUND", reason: "APP_NOT_FOUND" });
  await expect(make({ oauthAppId: "oa_nothing" })).rejects.toMatchObject({ code: "NOT_FOUND" });
  const other = await newProject(account);
  const foreign = newConnectToken(account, other.token, { oauthAppId });
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such OAuth app." });
});

test.each([
  ["webhook_uri", { webhookUri: "http://hooks.acme-crm.com/x" }],
  ["webhook_uri", { webhookUri: "https://10.0.0.8/x" }],
  ["webhook_uri", { environment: production, webhookUri: "https://localhost/x" } as const],
  ["require_verification", { requireVerification: true }],
])("refuses a connect token whose %s is good for nothing", async (field, more) => {
  await expect(newConnectToken(account, acme.token, more)).rejects.toMatchObject({ violations: [{ field }] });
});

test("takes a webhook of the product, and in development one of this machine", async () => {
  for (const webhookUri of ["https://hooks.acme-crm.com/x?y=1", "http://localhost:9000/x"]) {
    expect(await newConnectToken(account, acme.token, { webhookUri })).toMatch(/^ctok_/);
  }
});

test("says what a token is for, to anybody who holds it", async () => {
  const more = { successRedirectUri: "https://a.example/s", errorRedirectUri: "https://a.example/e" };
  const connectToken = await newConnectToken(account, acme.token, { ...more, allowedOrigins: ["https://a.example"] });
  const answer = await api.validateConnectToken({ connectToken, appSlug: "sandbox" }, call());
  expect(answer).toMatchObject({
    valid: true,
    error: "",
    app: { slug: "sandbox" },
    oauthAppId,
    projectId: acme.projectId,
    environment: development,
    externalUserId: "ann",
    projectAppName: "Acme CRM",
    projectSupportEmail: "help@acme.test",
    allowedOrigins: ["https://a.example"],
    ...more,
  });
  expect(await gateway.validateConnectToken({ connectToken, appSlug: "sandbox" }, call())).toEqual(answer);
});

test("says why a token cannot be used, as an answer", async () => {
  const connectToken = await newConnectToken(account, acme.token, { appSlug: "sandbox" });
  const validate = (more: object) => api.validateConnectToken({ connectToken, ...more }, call());
  expect(await validate({ appSlug: "nothing" })).toMatchObject({
    valid: false,
    error: "App not found. Please check your app id.",
  });
  expect(await validate({ appSlug: "sandbox_header_key" })).toMatchObject({ valid: false, app: undefined });
  expect(await validate({ accountId: "apn_nothing" })).toMatchObject({ valid: false, error: "No such account." });
  expect(await validate({ oauthAppId: "oa_nothing" })).toMatchObject({ valid: false, error: "No such OAuth app." });
  const unknown = await validate({ connectToken: `ctok_${"0".repeat(32)}` });
  expect(unknown).toMatchObject({ valid: false, projectId: "" });
  clock.aheadMs = 14_400_001;
  expect(await validate({})).toEqual(unknown);
  clock.aheadMs = 0;
  expect(await validate({})).toMatchObject({ valid: true });
});
