// Accounts made without a browser, read and listed: what is refused, who sees which, and pages without gaps or repeats.
import { expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { AccountHealth, AccountState } from "#proto/deputy/account/v1/accounts.ts";
import {
  call,
  development,
  insertAccounts,
  keyFields,
  newConnectToken,
  newKeyAccount,
  newOauthApp,
  newProject,
  production,
  startAccount,
} from "./harness.ts";

const account = await startAccount();
const { api, operator, vault, db } = account;
const acme = await newProject(account);
const other = await newProject(account);
const oauthAppId = await newOauthApp(account, acme.projectId);

const create = (token: string, more = {}) =>
  api.createAccount(
    {
      environment: development,
      externalUserId: "ann",
      appSlug: "sandbox_header_key",
      credential: keyFields,
      ...more,
    },
    call(token),
  );
const get = (token: string, accountId: string, more = {}) =>
  api.getAccount({ environment: development, accountId, ...more }, call(token));
const absent = { code: "NOT_FOUND", message: "No such account." };
const fields = (values: Record<string, string>) => ({ credential: { $case: "fields", value: { values } } }) as const;
const grant = (value: object) => ({ credential: { $case: "grant", value: { accessToken: "at", ...value } } }) as const;

test("makes an account with keys, which go to the vault and nowhere else", async () => {
  const { account: made } = await create(acme.token, { name: "Ann's key" });
  expect(made).toMatchObject({
    id: expect.stringMatching(/^apn_\w{22}$/),
    projectId: acme.projectId,
    environment: development,
    externalUserId: "ann",
    appSlug: "sandbox_header_key",
    oauthAppId: "",
    name: "Ann's key",
    state: AccountState.ACTIVE,
    health: AccountHealth.HEALTHY,
  });
  const { request, call: told } = vault.callsOf("storeCredential").at(-1) ?? {};
  expect(request).toMatchObject({
    projectId: acme.projectId,
    environment: development,
    externalUserId: "ann",
    accountId: made?.id,
    appSlug: "sandbox_header_key",
    material: { $case: "fields", value: { values: { api_key: "sandbox-key-0123" } } },
  });
  expect(told?.token).toBeUndefined();
  expect(JSON.stringify(await db.selectFrom("accounts").selectAll().execute())).not.toContain("sandbox-key-0123");
  expect((await get(acme.token, made?.id ?? "")).account).toEqual(made);
});

test("imports a grant for an app with OAuth, with its scopes and the project's OAuth app", async () => {
  const { account: made } = await create(acme.token, {
    appSlug: "sandbox",
    ...grant({ refreshToken: "rt", scopes: ["read"] }),
  });
  expect(made).toMatchObject({ appSlug: "sandbox", oauthAppId, authorizedScopes: ["read"] });
  expect(vault.callsOf("storeCredential").at(-1)?.request).toMatchObject({
    oauthAppId,
    material: { $case: "grant", value: { accessToken: "at", refreshToken: "rt" } },
  });
});

test("fills in defaults before it seals", async () => {
  await create(acme.token, { appSlug: "tenant_key" });
  expect(vault.callsOf("storeCredential").at(-1)?.request).toMatchObject({
    material: { value: { values: { api_key: "sandbox-key-0123", tenant: "acme" } } },
  });
});

test.each([
  ["a value of the wrong form", fields({ api_key: "secret-x" }), "fields.api_key"],
  ["a missing value", fields({}), "fields.api_key"],
  ["a field that the app does not have", fields({ api_key: "sandbox-key-0123", "secret-x": "1" }), "fields"],
  ["a grant for an app with keys", grant({}), "grant"],
  ["keys for an app with OAuth", { appSlug: "sandbox", ...fields({ api_key: "sandbox-key-0123" }) }, "fields"],
  ["no credential", { credential: undefined }, "credential"],
  ["no user", { externalUserId: "" }, "external_user_id"],
  ["no environment", { environment: 0 }, "environment"],
  [
    "a value that leaves its place in the base URL",
    { appSlug: "tenant_key", ...fields({ api_key: "sandbox-key-0123", tenant: "evil.test/" }) },
    "fields",
  ],
])("refuses %s, names the field and repeats no value", async (_, more, field) => {
  const calls = vault.calls.length;
  const refusal = await create(acme.token, more).catch((error) => error);
  expect(refusal).toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field }] });
  expect(`${refusal.message} ${JSON.stringify(refusal.violations)}`).not.toMatch(/secret-x|evil/);
  expect(vault.calls).toHaveLength(calls);
});

test("refuses an app that is not there, a foreign OAuth app and an override", async () => {
  await expect(create(acme.token, { appSlug: "nothing" })).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
  const foreign = { appSlug: "sandbox", oauthAppId, ...grant({}) };
  await expect(create(other.token, foreign)).rejects.toMatchObject({ code: "NOT_FOUND" });
  const absent = create(acme.token, { appOverrideId: "aov_1" });
  await expect(absent).rejects.toMatchObject({ reason: "APP_OVERRIDE_NOT_FOUND" });
  const bare = operator.createAccount(
    {
      projectId: "proj_absent",
      environment: development,
      externalUserId: "x",
      appSlug: "sandbox_header_key",
      credential: keyFields,
    },
    call(),
  );
  await expect(bare).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such project." });
});

test("makes nothing when the vault refuses, and destroys what it may have sealed", async () => {
  const count = async () => (await api.listAccounts({ environment: development }, call(acme.token))).totalSize;
  const before = await count();
  vault.failNext("storeCredential", new StatusError("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "Too slow."));
  await expect(create(acme.token)).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
  const { accountId = "" } = (vault.callsOf("storeCredential").at(-1)?.request ?? {}) as { accountId?: string };
  expect(accountId).toMatch(/^apn_/);
  expect(vault.callsOf("destroyCredentials").at(-1)?.request).toMatchObject({ accountIds: [accountId] });
  expect(await count()).toBe(before);
});

test("connects one account with a connect token, also when four ask at once", async () => {
  const token = await newConnectToken(account, acme.token, { externalUserId: "four" });
  const asked = Array.from({ length: 4 }, () => create(token, { environment: 0, externalUserId: "" }));
  const results = await Promise.allSettled(asked);
  expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  for (const result of results) {
    if (result.status === "rejected") expect(result.reason).toMatchObject({ reason: "CONNECT_TOKEN_INVALID" });
  }
  const { accounts } = await api.listAccounts({}, call(token));
  expect(accounts).toMatchObject([{ externalUserId: "four" }]);
});

test("reconnects once with a connect token, also when four ask at once", async () => {
  const made = await newKeyAccount(account, acme.token, "again");
  const token = await newConnectToken(account, acme.token, { externalUserId: "again" });
  const again = () => create(token, { externalUserId: "", accountId: made.id });
  const results = await Promise.allSettled([again(), again(), again(), again()]);
  expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
});

test("gives the use of a connect token back when the vault fails", async () => {
  const token = await newConnectToken(account, acme.token, { externalUserId: "retry" });
  vault.failNext("storeCredential");
  await expect(create(token, { externalUserId: "" })).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect((await create(token, { externalUserId: "" })).account?.externalUserId).toBe("retry");
});

test("makes with a connect token no account of another user or app", async () => {
  const token = await newConnectToken(account, acme.token, { appSlug: "sandbox" });
  await expect(create(token, { externalUserId: "bob" })).rejects.toMatchObject({ code: "NOT_FOUND" });
  await expect(create(token)).rejects.toMatchObject({ violations: [{ field: "app_slug" }] });
});

test("replaces the credential of an account in place, for the same user, environment and app alone", async () => {
  const made = await newKeyAccount(account, acme.token);
  const again = await create(acme.token, { accountId: made.id, name: "renamed" });
  expect(again.account).toMatchObject({ id: made.id, name: "renamed" });
  expect((await create(acme.token, { accountId: made.id })).account?.name).toBe("renamed");
  expect(vault.callsOf("storeCredential").at(-1)?.request).toMatchObject({ accountId: made.id });
  const wrong = [
    { externalUserId: "bob" },
    { environment: production },
    { appSlug: "sandbox_query_key" },
    { accountId: "apn_nothing" },
  ];
  for (const more of wrong)
    await expect(create(acme.token, { accountId: made.id, ...more })).rejects.toMatchObject(absent);
  await expect(create(other.token, { accountId: made.id })).rejects.toMatchObject(absent);
});

test("leaves the old credential alone when its replacement fails, and destroys one that came too late", async () => {
  const made = await newKeyAccount(account, acme.token);
  const destroyed = () => vault.callsOf("destroyCredentials").length;
  const before = destroyed();
  vault.failNext("storeCredential");
  await expect(create(acme.token, { accountId: made.id })).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(destroyed()).toBe(before);

  vault.hooks.before = async (method) => {
    if (method !== "storeCredential") return;
    delete vault.hooks.before;
    await api.deleteAccount({ environment: development, accountId: made.id }, call(acme.token));
  };
  await expect(create(acme.token, { accountId: made.id })).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  expect(destroyed()).toBe(before + 2);
});

test("shows an account to its project, environment and user alone, and absent ones alike", async () => {
  const { id } = await newKeyAccount(account, acme.token);
  expect((await get(acme.token, id, { externalUserId: "ann" })).account?.id).toBe(id);
  await expect(get(acme.token, "apn_nothing")).rejects.toMatchObject(absent);
  await expect(get(other.token, id)).rejects.toMatchObject(absent);
  await expect(get(acme.token, id, { environment: production })).rejects.toMatchObject(absent);
  await expect(get(acme.token, id, { externalUserId: "bob" })).rejects.toMatchObject(absent);
  const bob = await newConnectToken(account, acme.token, { externalUserId: "bob" });
  await expect(get(bob, id)).rejects.toMatchObject(absent);
  await expect(get(other.token, id, { projectId: acme.projectId })).rejects.toMatchObject({ code: "NOT_FOUND" });
  await expect(get(acme.token, id, { environment: 0 })).rejects.toMatchObject({
    violations: [{ field: "environment" }],
  });
});

test("reads an account without asking the vault", async () => {
  const { id } = await newKeyAccount(account, acme.token);
  const calls = vault.calls.length;
  expect((await get(acme.token, id)).account?.id).toBe(id);
  expect(vault.calls).toHaveLength(calls);
});

test("walks 250 accounts of one millisecond in pages, without gaps or repeats", async () => {
  const project = await newProject(account);
  const ids = await insertAccounts(account, project.projectId, 250);
  const seen: string[] = [];
  let pageToken = "";
  const sizes: number[] = [];
  do {
    const page = await api.listAccounts({ environment: development, pageSize: 60, pageToken }, call(project.token));
    expect(page.totalSize).toBe(250);
    sizes.push(page.accounts.length);
    seen.push(...page.accounts.map(({ id }) => id));
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  expect(sizes).toEqual([60, 60, 60, 60, 10]);
  expect(seen).toEqual([...ids].sort());
  const whole = await api.listAccounts({ environment: development, pageSize: 250 }, call(project.token));
  expect(whole.nextPageToken).toBe("");
  const byDefault = await api.listAccounts({ environment: development }, call(project.token));
  expect(byDefault.accounts).toHaveLength(100);
});

test("neither repeats nor skips when accounts come and go between pages", async () => {
  const project = await newProject(account);
  await insertAccounts(account, project.projectId, 20);
  const list = (pageToken: string) =>
    api.listAccounts({ environment: development, pageSize: 10, pageToken }, call(project.token));
  const first = await list("");
  const gone = first.accounts[3]?.id ?? "";
  await api.deleteAccount({ environment: development, accountId: gone }, call(project.token));
  const late = await newKeyAccount(account, project.token);
  const second = await list(first.nextPageToken);
  const third = await list(second.nextPageToken);
  const seen = [first, second, third].flatMap(({ accounts }) => accounts.map(({ id }) => id));
  expect(seen).toHaveLength(21);
  expect(new Set(seen).size).toBe(21);
  expect(seen.at(-1)).toBe(late.id);
});

test("filters by user, app, OAuth app and health, joined by and", async () => {
  const project = await newProject(account);
  await insertAccounts(account, project.projectId, 20);
  const count = async (more: object) => {
    const { accounts, totalSize } = await api.listAccounts({ environment: development, ...more }, call(project.token));
    expect(accounts).toHaveLength(totalSize);
    return totalSize;
  };
  expect(await count({})).toBe(20);
  expect(await count({ externalUserId: "ann" })).toBe(20);
  expect(await count({ externalUserId: "bob" })).toBe(0);
  expect(await count({ appSlug: "sandbox_header_key" })).toBe(10);
  expect(await count({ oauthAppId: "oa_five" })).toBe(4);
  expect(await count({ oauthAppId: "oa_five", appSlug: "sandbox_header_key" })).toBe(2);
  expect(await count({ health: AccountHealth.HEALTHY })).toBe(20);
  expect(await count({ health: AccountHealth.DEAD })).toBe(0);
  expect(await count({ environment: production })).toBe(0);
});

test("lists a connect token's user's accounts alone, and no other project's", async () => {
  const project = await newProject(account);
  await insertAccounts(account, project.projectId, 3, "ann");
  await newKeyAccount(account, project.token, "bob");
  const bob = await newConnectToken(account, project.token, { externalUserId: "bob" });
  expect((await api.listAccounts({}, call(bob))).accounts).toMatchObject([{ externalUserId: "bob" }]);
  const nobody = await newProject(account);
  expect((await api.listAccounts({ environment: development }, call(nobody.token))).totalSize).toBe(0);
});

test("refuses a page token that no list gave", async () => {
  for (const pageToken of ["x", "!!!", Buffer.from("99 x'; drop").toString("base64url")]) {
    const list = api.listAccounts({ environment: development, pageToken }, call(acme.token));
    await expect(list).rejects.toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field: "page_token" }] });
  }
});
