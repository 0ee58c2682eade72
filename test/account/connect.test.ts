// Connect tokens and connections: who may start, how they end, and that each token connects one account once.
import { expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import {
  binding,
  call,
  development,
  keyFields,
  newConnectToken,
  newKeyAccount,
  newOauthApp,
  newProject,
  production,
  startAccount,
} from "./harness.ts";

const account = await startAccount();
const { operator, api, gateway, proxy, vault, clock, db } = account;
const acme = await newProject(account);
const oauthAppId = await newOauthApp(account, acme.projectId);
const invalidToken = { code: "UNAUTHENTICATED", reason: "CONNECT_TOKEN_INVALID" };

const start = (token: string, more = {}) =>
  api.startConnection({ appSlug: "sandbox", browserBinding: binding, ...more }, call(token));
const stateOf = (url: string) => new URL(url).searchParams.get("state") ?? "";
const complete = (state: string, more = {}) =>
  gateway.completeConnection({ state, code: "the-code", browserBinding: binding, ...more }, call());
const startNew = async (more = {}) => {
  const token = await newConnectToken(account, acme.token, more);
  const started = await start(token);
  return { token, ...started, state: stateOf(started.authorizationUrl) };
};

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

test("refuses a token for an app or OAuth app that is not there, and what is not built", async () => {
  const make = (more: object) => newConnectToken(account, acme.token, more);
  await expect(make({ appSlug: "nothing" })).rejects.toMatchObject({ code: "NOT_FOUND", reason: "APP_NOT_FOUND" });
  await expect(make({ oauthAppId: "oa_nothing" })).rejects.toMatchObject({ code: "NOT_FOUND" });
  const other = await newProject(account);
  const foreign = newConnectToken(account, other.token, { oauthAppId });
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such OAuth app." });
  await expect(make({ webhookUri: "https://app.example/hook" })).rejects.toMatchObject({ code: "UNIMPLEMENTED" });
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

test("connects an account through the provider, once, and answers a repeat the same", async () => {
  const redirects = { successRedirectUri: "https://a.example/s?x=1", errorRedirectUri: "https://a.example/e" };
  const { token, connectionId, state, authorizationUrl } = await startNew(redirects);
  expect(authorizationUrl).toMatch(/^https:\/\/provider\.test\/auth/);
  const pending = (await api.getConnection({ connectionId }, call(token))).connection;
  expect(pending).toMatchObject({ state: ConnectionState.PENDING, accountId: "", appSlug: "sandbox" });

  const first = await complete(state, { issuer: "https://provider.test" });
  expect(first).toMatchObject({
    redirectUri: "https://a.example/s?x=1",
    connection: { state: ConnectionState.SUCCEEDED },
  });
  expect(vault.callsOf("completeAuthorization").at(-1)?.request).toMatchObject({
    state,
    code: "the-code",
    issuer: "https://provider.test",
  });
  const accountId = first.connection?.accountId ?? "";
  expect(await complete(state)).toEqual(first);
  expect((await api.getConnection({ connectionId }, call(token))).connection).toEqual(first.connection);
  const { accounts } = await api.listAccounts({ environment: development, appSlug: "sandbox" }, call(acme.token));
  expect(accounts).toHaveLength(1);
  expect(accounts[0]).toMatchObject({
    id: accountId,
    externalUserId: "ann",
    name: "ann@provider.test",
    oauthAppId,
    authorizedScopes: ["read", "write"],
  });
});

test("tells the vault whom, what and with which scopes, by its own right", async () => {
  await startNew();
  const { request, call: made } = vault.callsOf("startAuthorization").at(-1) ?? {};
  expect(request).toMatchObject({
    projectId: acme.projectId,
    environment: development,
    externalUserId: "ann",
    accountId: expect.stringMatching(/^apn_\w{22}$/),
    appSlug: "sandbox",
    oauthAppId,
    redirectUri: "https://deputy.example:8443/oauth/callback",
    scopes: ["openid", "offline_access", "profile", "read", "write"],
  });
  expect(made?.token).toBeUndefined();
  await start(await newConnectToken(account, acme.token), { scopeProfile: "read_only" });
  expect(vault.callsOf("startAuthorization").at(-1)?.request).toMatchObject({
    scopes: ["openid", "offline_access", "profile", "read"],
  });
});

test("answers ten redirects at the same time with one account", async () => {
  const { state } = await startNew({ externalUserId: "ten" });
  const answers = await Promise.all(Array.from({ length: 10 }, () => complete(state)));
  expect(new Set(answers.map(({ connection }) => JSON.stringify(connection))).size).toBe(1);
  const { totalSize } = await api.listAccounts({ environment: development, externalUserId: "ten" }, call(acme.token));
  expect(totalSize).toBe(1);
});

test("goes on after a failure between the exchange and the account", async () => {
  const { state } = await startNew({ externalUserId: "crash" });
  await account.owner.query("alter table accounts add constraint broken check (external_user_id <> 'crash')");
  try {
    await expect(complete(state)).rejects.toMatchObject({ code: "INTERNAL" });
  } finally {
    await account.owner.query("alter table accounts drop constraint broken");
  }
  expect((await complete(state)).connection?.state).toBe(ConnectionState.SUCCEEDED);
});

test("goes on after an outage of the vault", async () => {
  const { state } = await startNew();
  vault.failNext("completeAuthorization");
  await expect(complete(state)).rejects.toMatchObject({ code: "UNAVAILABLE" });
  vault.failNext("completeAuthorization", new StatusError("FAILED_PRECONDITION", "SEALED", "The vault is sealed."));
  await expect(complete(state)).rejects.toMatchObject({ reason: "SEALED" });
  expect((await complete(state)).connection?.state).toBe(ConnectionState.SUCCEEDED);
});

test("ends a connection as failed when the user says no, and leaves the token for another try", async () => {
  const { token, state } = await startNew({ errorRedirectUri: "https://a.example/e" });
  const denied = await complete(state, { code: "", error: "access_denied" });
  expect(denied).toMatchObject({
    redirectUri: "https://a.example/e",
    connection: { state: ConnectionState.FAILED, error: "The user said no.", accountId: "" },
  });
  expect(await complete(state)).toEqual(denied);
  const again = await start(token);
  expect((await complete(stateOf(again.authorizationUrl))).connection?.state).toBe(ConnectionState.SUCCEEDED);
});

test("refuses another browser, and the right one can still finish", async () => {
  const { state } = await startNew();
  const calls = vault.callsOf("completeAuthorization").length;
  const stolen = complete(state, { browserBinding: "another-browser-that-caught-the-redirect" });
  await expect(stolen).rejects.toMatchObject({ code: "PERMISSION_DENIED", reason: "BROWSER_MISMATCH" });
  expect(vault.callsOf("completeAuthorization")).toHaveLength(calls);
  expect((await complete(state)).connection?.state).toBe(ConnectionState.SUCCEEDED);
  await expect(complete("a-state-that-nobody-made")).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("connects one account with a token: nothing can be started, completed or created after", async () => {
  const { token, state, connectionId } = await startNew({ externalUserId: "single" });
  const second = await start(token);
  await complete(state);
  const calls = vault.callsOf("completeAuthorization").length;
  const late = await complete(stateOf(second.authorizationUrl));
  expect(late.connection).toMatchObject({ state: ConnectionState.FAILED, accountId: "" });
  expect(vault.callsOf("completeAuthorization")).toHaveLength(calls);
  await expect(start(token)).rejects.toMatchObject(invalidToken);
  const create = { appSlug: "sandbox_header_key", credential: keyFields };
  await expect(api.createAccount(create, call(token))).rejects.toMatchObject(invalidToken);
  const validation = await api.validateConnectToken({ connectToken: token, appSlug: "sandbox" }, call());
  expect(validation).toMatchObject({ valid: false });
  // Until its end it still speaks for its user.
  const { connection } = await api.getConnection({ connectionId }, call(token));
  const accountId = connection?.accountId ?? "";
  expect((await api.getAccount({ accountId }, call(token))).account?.id).toBe(accountId);
  expect((await proxy.issueAccessToken({ grant: { $case: "connectToken", value: token } }, call())).scope).toBe(
    "connect:*",
  );
});

test("lets one of two connections of a token win", async () => {
  const token = await newConnectToken(account, acme.token, { externalUserId: "race" });
  const states = await Promise.all([1, 2, 3, 4].map(async () => stateOf((await start(token)).authorizationUrl)));
  const ends = await Promise.all(states.map((state) => complete(state)));
  expect(ends.filter(({ connection }) => connection?.state === ConnectionState.SUCCEEDED)).toHaveLength(1);
  const { totalSize } = await api.listAccounts({ environment: development, externalUserId: "race" }, call(acme.token));
  expect(totalSize).toBe(1);
});

test("starts nothing with an ended token, an unknown one, none, or another kind", async () => {
  const token = await newConnectToken(account, acme.token, { lifetimeSeconds: 60 });
  clock.aheadMs = 60_001;
  await expect(start(token)).rejects.toMatchObject(invalidToken);
  clock.aheadMs = 0;
  await expect(start(`ctok_${"0".repeat(32)}`)).rejects.toMatchObject(invalidToken);
  const none = api.startConnection({ appSlug: "sandbox", browserBinding: binding }, call());
  await expect(none).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_REQUIRED" });
  await expect(start(acme.token)).rejects.toMatchObject({ reason: "CONNECT_TOKEN_REQUIRED" });
  const narrow = await newConnectToken(account, acme.token, { scope: "connect:accounts:read" });
  await expect(start(narrow)).rejects.toMatchObject({ code: "PERMISSION_DENIED", reason: "SCOPE_MISSING" });
});

test("starts nothing but what the token is for", async () => {
  const bound = await newConnectToken(account, acme.token, { appSlug: "sandbox", oauthAppId });
  await expect(start(bound, { appSlug: "sandbox_header_key" })).rejects.toMatchObject({
    violations: [{ field: "app_slug" }],
  });
  await expect(start(bound, { oauthAppId: "oa_x" })).rejects.toMatchObject({ violations: [{ field: "oauth_app_id" }] });
  expect((await start(bound, { appSlug: "" })).connectionId).toMatch(/^con_/);
  const open = await newConnectToken(account, acme.token);
  await expect(start(open, { appSlug: "" })).rejects.toMatchObject({ violations: [{ field: "app_slug" }] });
  await expect(start(open, { appSlug: "sandbox_header_key" })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  await expect(start(open, { scopeProfile: "root" })).rejects.toMatchObject({
    violations: [{ field: "scope_profile" }],
  });
  await expect(start(open, { fields: { x: "y" } })).rejects.toMatchObject({ violations: [{ field: "fields" }] });
  await expect(start(open, { appOverrideId: "aov_1" })).rejects.toMatchObject({ reason: "APP_OVERRIDE_NOT_FOUND" });
  await expect(start(open, { browserBinding: "short" })).rejects.toMatchObject({
    violations: [{ field: "browser_binding" }],
  });
});

test("says what to do when the project has no OAuth app", async () => {
  const bare = await newProject(account);
  const token = await newConnectToken(account, bare.token);
  const refused = {
    code: "FAILED_PRECONDITION",
    reason: "OAUTH_APP_MISSING",
    message: expect.stringContaining("CreateOauthApp"),
  };
  await expect(start(token)).rejects.toMatchObject(refused);
  const validation = await api.validateConnectToken({ connectToken: token, appSlug: "sandbox" }, call());
  expect(validation).toMatchObject({ valid: false, error: expect.stringContaining("CreateOauthApp") });
});

test("uses the OAuth app asked for, else the token's, else the newest", async () => {
  const project = await newProject(account);
  const first = await newOauthApp(account, project.projectId);
  const second = await newOauthApp(account, project.projectId);
  const used = () => vault.callsOf("startAuthorization").at(-1)?.request;
  await start(await newConnectToken(account, project.token));
  expect(used()).toMatchObject({ oauthAppId: second });
  await start(await newConnectToken(account, project.token, { oauthAppId: first }));
  expect(used()).toMatchObject({ oauthAppId: first, appSlug: "sandbox" });
  await start(await newConnectToken(account, project.token), { oauthAppId: first });
  expect(used()).toMatchObject({ oauthAppId: first });
  await expect(start(await newConnectToken(account, project.token), { oauthAppId })).rejects.toMatchObject({
    code: "NOT_FOUND",
  });
});

test("reconnects an account in place, and nobody else's", async () => {
  const { state } = await startNew({ externalUserId: "again" });
  const accountId = (await complete(state)).connection?.accountId ?? "";
  const token = await newConnectToken(account, acme.token, { externalUserId: "again" });
  expect(await api.validateConnectToken({ connectToken: token, accountId }, call())).toMatchObject({ valid: true });
  const again = await start(token, { accountId });
  expect(vault.callsOf("startAuthorization").at(-1)?.request).toMatchObject({ accountId });
  expect((await complete(stateOf(again.authorizationUrl))).connection).toMatchObject({
    state: ConnectionState.SUCCEEDED,
    accountId,
  });
  const { totalSize } = await api.listAccounts({ environment: development, externalUserId: "again" }, call(acme.token));
  expect(totalSize).toBe(1);

  const key = await newKeyAccount(account, acme.token, "again");
  const otherApp = start(await newConnectToken(account, acme.token, { externalUserId: "again" }), {
    accountId: key.id,
  });
  await expect(otherApp).rejects.toMatchObject({ code: "NOT_FOUND" });
  const otherUser = start(await newConnectToken(account, acme.token), { accountId });
  await expect(otherUser).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such account." });
});

test("destroys the new credential when the account is revoked during its reconnection", async () => {
  const { state } = await startNew({ externalUserId: "gone" });
  const accountId = (await complete(state)).connection?.accountId ?? "";
  const again = await start(await newConnectToken(account, acme.token, { externalUserId: "gone" }), { accountId });
  await api.deleteAccount({ environment: development, accountId }, call(acme.token));
  const destroyed = vault.callsOf("destroyCredentials").length;
  const end = await complete(stateOf(again.authorizationUrl));
  expect(end.connection).toMatchObject({ state: ConnectionState.FAILED, error: "The account was revoked meanwhile." });
  expect(vault.callsOf("destroyCredentials").slice(destroyed)).toMatchObject([
    { request: { accountIds: [accountId] } },
  ]);
  await expect(api.getAccount({ environment: development, accountId }, call(acme.token))).rejects.toMatchObject({
    reason: "ACCOUNT_REVOKED",
  });
});

test("shows a connection to its project and its user alone", async () => {
  const { connectionId } = await startNew();
  const get = (token: string, more = {}) =>
    api.getConnection({ environment: development, connectionId, ...more }, call(token));
  expect((await get(acme.token)).connection?.id).toBe(connectionId);
  const absent = { code: "NOT_FOUND", message: "No such connection." };
  await expect(get((await newProject(account)).token)).rejects.toMatchObject(absent);
  await expect(get(acme.token, { environment: production })).rejects.toMatchObject(absent);
  await expect(get(acme.token, { externalUserId: "bob" })).rejects.toMatchObject(absent);
  const bob = await newConnectToken(account, acme.token, { externalUserId: "bob" });
  await expect(get(bob)).rejects.toMatchObject(absent);
  const byOperator = operator.getConnection(
    { projectId: acme.projectId, environment: development, connectionId },
    call(),
  );
  expect((await byOperator).connection?.id).toBe(connectionId);
});

test("writes no token, state, code, binding or key into its log", async () => {
  const { token, state, authorizationUrl } = await startNew({ externalUserId: "logged" });
  await complete(state, { code: "the-secret-code" });
  const wrong = { $case: "fields", value: { values: { api_key: "not-the-form-of-a-key" } } } as const;
  const create = {
    environment: development,
    externalUserId: "x",
    appSlug: "sandbox_header_key",
    credential: wrong,
  } as const;
  await expect(api.createAccount(create, call(acme.token))).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  await newKeyAccount(account, acme.token, "logged");
  const text = account.lines.join("");
  expect(text).toContain('"method":"CompleteConnection"');
  const secrets = [token, state, authorizationUrl, binding, "the-secret-code", "not-the-form", "sandbox-key-"];
  for (const secret of [...secrets, acme.token, acme.clientSecret, "ctok_"]) expect(text).not.toContain(secret);
});
