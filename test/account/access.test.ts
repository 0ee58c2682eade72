// Projects, API clients, access tokens, and who may call what.
import { decodeJwt, decodeProtectedHeader } from "jose";
import { expect, test } from "vitest";
import { accessTokenVerifier } from "#libs/access-tokens.ts";
import { createLogger } from "#libs/log.ts";
import { startServer } from "#libs/rpc-server.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { callers } from "../../services/account/callers.ts";
import { loadTokenKeys } from "../../services/account/token-keys.ts";
import { testTls } from "../support/tls.ts";
import {
  call,
  development,
  issue,
  newConnectToken,
  newKeyAccount,
  newProject,
  newTokenKey,
  production,
  startAccount,
} from "./harness.ts";

const account = await startAccount();
const { operator, api, gateway, proxy, clock, db } = account;
const acme = await newProject(account);
const other = await newProject(account);
const credentials = (clientId: string, clientSecret: string) =>
  ({ $case: "clientCredentials", value: { clientId, clientSecret } }) as const;

test("gives an operator any project and an API client its own alone", async () => {
  const { project } = await operator.getProject({ projectId: acme.projectId }, call());
  expect(project).toMatchObject({
    id: acme.projectId,
    name: "Acme",
    appName: "Acme CRM",
    supportEmail: "help@acme.test",
  });
  expect((await api.getProject({}, call(acme.token))).project).toEqual(project);
  const foreign = api.getProject({ projectId: other.projectId }, call(acme.token));
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such project." });
  const absent = operator.getProject({ projectId: "proj_absent" }, call());
  await expect(absent).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such project." });
});

test("makes API clients for the operator alone", async () => {
  const refused = { code: "PERMISSION_DENIED", reason: "CALLER_NOT_ALLOWED" };
  await expect(gateway.createApiClient({}, call(acme.token))).rejects.toMatchObject(refused);
  const absent = operator.createApiClient({ projectId: "proj_absent" }, call());
  await expect(absent).rejects.toMatchObject({ code: "NOT_FOUND" });
  const badScope = operator.createApiClient({ projectId: acme.projectId, scopes: ["Connect Me"] }, call());
  await expect(badScope).rejects.toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field: "scopes" }] });
});

test("signs access tokens that the published keys verify, with the claims of the client", async () => {
  const { keys } = await proxy.getTokenKeys({}, call());
  const verify = accessTokenVerifier(async () => keys, Date.now);
  const identity = await verify(acme.token);
  expect(identity).toMatchObject({ subject: acme.clientId, projectId: acme.projectId, scopes: ["*"] });
  expect(identity.expireMs - Date.now()).toBeGreaterThan(3_590_000);
  expect(identity.expireMs - Date.now()).toBeLessThanOrEqual(3_600_000);
  expect(decodeProtectedHeader(acme.token)).toMatchObject({ alg: "EdDSA", kid: keys[0]?.keyId });
  expect(decodeJwt(acme.token).jti).not.toBe(decodeJwt(await issue(api, acme.clientId, acme.clientSecret)).jti);
});

test("gives no more scopes than the client has", async () => {
  const narrow = await newProject(account, ["connect:accounts:read", "connect:tokens:create"]);
  const ask = (scope: string) =>
    api.issueAccessToken({ grant: credentials(narrow.clientId, narrow.clientSecret), scope }, call());
  expect((await ask("")).scope).toBe("connect:accounts:read connect:tokens:create");
  expect((await ask("connect:accounts:read")).scope).toBe("connect:accounts:read");
  for (const scope of ["*", "connect:*", "connect:accounts:write", "not a:Scope"]) {
    await expect(ask(scope)).rejects.toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field: "scope" }] });
  }
  const missing = api.deleteAccount({ environment: development, accountId: "apn_x" }, call(narrow.token));
  await expect(missing).rejects.toMatchObject({ code: "PERMISSION_DENIED", reason: "SCOPE_MISSING" });
});

test("exchanges a connect token for an access token of its user that ends with it", async () => {
  const token = await newConnectToken(account, acme.token, {
    lifetimeSeconds: 600,
    scope: "connect:accounts:read connect:proxy",
  });
  const issued = await proxy.issueAccessToken({ grant: { $case: "connectToken", value: token } }, call());
  expect(decodeJwt(issued.accessToken)).toMatchObject({
    project_id: acme.projectId,
    environment: development,
    external_user_id: "ann",
    scope: "connect:accounts:read connect:proxy",
  });
  expect((issued.expireTime?.getTime() ?? 0) - Date.now()).toBeLessThanOrEqual(600_000);
  const own = await newKeyAccount(account, acme.token, "ann");
  const foreign = await newKeyAccount(account, acme.token, "bob");
  expect((await api.getAccount({ accountId: own.id }, call(issued.accessToken))).account?.id).toBe(own.id);
  await expect(api.getAccount({ accountId: foreign.id }, call(issued.accessToken))).rejects.toMatchObject({
    code: "NOT_FOUND",
  });
  const garbage = proxy.issueAccessToken({ grant: { $case: "connectToken", value: `ctok_${"0".repeat(32)}` } }, call());
  await expect(garbage).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "CONNECT_TOKEN_INVALID" });
});

test("refuses an access token after its end, a foreign one, and none at all", async () => {
  const list = (token?: string) => api.listAccounts({ environment: development }, call(token));
  await expect(list()).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_REQUIRED" });
  await expect(list("garbage")).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_INVALID" });
  const stranger = await loadTokenKeys(newTokenKey());
  const claims = { sub: acme.clientId, project_id: acme.projectId, scope: "*" };
  const forged = await stranger.sign(claims, Date.now(), Date.now() + 60_000);
  await expect(list(forged.token)).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_INVALID" });
  expect((await list(acme.token)).accounts).toBeDefined();
  clock.aheadMs = 3_600_001;
  try {
    await expect(list(acme.token)).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_EXPIRED" });
  } finally {
    clock.aheadMs = 0;
  }
});

test("keeps a connect token to what a user's browser may do", async () => {
  const token = await newConnectToken(account, acme.token);
  const refused = { code: "PERMISSION_DENIED", reason: "CONNECT_TOKEN_NOT_ALLOWED" };
  const target = { $case: "externalUserId", value: "ann" } as const;
  const stream = api.revokeAllAccounts({ environment: development, target }, call(token));
  await expect(Array.fromAsync(stream)).rejects.toMatchObject(refused);
  await expect(api.createConnectToken({ externalUserId: "ann" }, call(token))).rejects.toMatchObject(refused);
  await expect(api.getProject({}, call(token))).rejects.toMatchObject(refused);
  await expect(api.listOauthApps({}, call(token))).rejects.toMatchObject(refused);
  await expect(api.listAccounts({ externalUserId: "bob" }, call(token))).rejects.toMatchObject({ code: "NOT_FOUND" });
  await expect(api.listAccounts({ environment: production }, call(token))).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("lets nobody but the gateway complete a connection, and a proxy only read accounts", async () => {
  const request = { state: "s", browserBinding: "b".repeat(32) };
  for (const client of [api, proxy, operator]) {
    await expect(client.completeConnection(request, call())).rejects.toMatchObject({ reason: "CALLER_NOT_ALLOWED" });
  }
  const own = await newKeyAccount(account, acme.token);
  const get = { environment: development, accountId: own.id } as const;
  expect((await proxy.getAccount(get, call(acme.token))).account?.id).toBe(own.id);
  await expect(proxy.getAccount(get, call())).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
  const deletion = proxy.deleteAccount(get, call(acme.token));
  await expect(deletion).rejects.toMatchObject({ reason: "CALLER_NOT_ALLOWED" });
});

test("does not start when a method has no row in the callers table", async () => {
  const { getAccount: _, ...rows } = callers;
  const start = startServer({
    definition: AccountServiceDefinition,
    handlers: {} as never,
    callers: rows as never,
    authenticate: async () => Promise.reject(new Error("not called")),
    internalAddress: "127.0.0.1:0",
    tls: await testTls("account"),
    reflection: false,
    log: createLogger("test", "silent"),
  });
  await expect(start).rejects.toThrow("getAccount");
});

test("does not take another kind of key, and says so without showing it", async () => {
  await expect(loadTokenKeys("not a key")).rejects.toThrow(
    /^DEPUTY_TOKEN_KEY_FILE does not hold an Ed25519 private key/,
  );
});

test("may neither delete rows nor rewrite what it has registered nor change the schema", async () => {
  const denied = /permission denied/;
  await expect(db.deleteFrom("accounts").execute()).rejects.toThrow(denied);
  await expect(
    db
      .updateTable("apiClients")
      .set({ scopes: ["*"] })
      .execute(),
  ).rejects.toThrow(denied);
  await expect(db.schema.createTable("mine").addColumn("id", "text").execute()).rejects.toThrow(denied);
});
