// App overrides: what an administrator fills in stays out of the user's hands, and a secret stays out of the administrator's.
import { expect, test } from "vitest";
import { loadCatalog } from "#libs/catalog.ts";
import type { CreateAppOverrideRequest, UpdateAppOverrideRequest } from "#proto/deputy/account/v1/apps.ts";
import { binding, call, development, newConnectToken, newOauthApp, newProject, startAccount } from "./harness.ts";

const sandbox = loadCatalog("catalog", { production: false }).get("sandbox");
if (sandbox === undefined) throw new Error("the catalog has changed");
const field = (name: string) => ({ name, label: name, description: "", default: "", optional: false, secret: false });
const tenantOauth = { ...sandbox, slug: "tenant_oauth", custom_fields: [field("tenant"), field("region")] };
const snakeOauth = { ...tenantOauth, slug: "snake_oauth", custom_fields: [field("company_name"), field("region")] };
const account = await startAccount(undefined, [tenantOauth, snakeOauth]);
const { api, vault, db } = account;
const acme = await newProject(account);
const other = await newProject(account);
const oauthAppId = await newOauthApp(account, acme.projectId);
/** The newest, which is used when nobody chooses. */
const newestOauthAppId = await newOauthApp(account, acme.projectId);

let overrides = 0;
const create = async (more: Partial<CreateAppOverrideRequest> = {}, token = acme.token) => {
  const request = { appSlug: "tenant_key", name: `Override ${++overrides}`, ...more };
  const { appOverride } = await api.createAppOverride(request, call(token));
  if (appOverride === undefined) throw new Error("no app override");
  return appOverride;
};
const update = (appOverrideId: string, change: Partial<UpdateAppOverrideRequest>, token = acme.token) =>
  api.updateAppOverride({ appOverrideId, ...change }, call(token));
const find = (appOverrideId: string) => api.getAppOverride({ appOverrideId }, call(acme.token));
const notFound = { code: "NOT_FOUND", message: "No such app override." };
const lastOf = (method: string) => vault.callsOf(method).at(-1)?.request;

test("makes an app override, shows it and lists it in pages, by app", async () => {
  const project = await newProject(account);
  const ownOauthApp = await newOauthApp(account, project.projectId);
  const make = (more: Partial<CreateAppOverrideRequest>) => create(more, project.token);
  const made = [
    await make({ name: "EU", fields: { tenant: "acme-eu" } }),
    await make({ appSlug: "sandbox", oauthAppId: ownOauthApp }),
    await make({}),
  ];
  expect(made[0]).toEqual({
    id: expect.stringMatching(/^aov_\w{22}$/),
    projectId: project.projectId,
    appSlug: "tenant_key",
    name: "EU",
    oauthAppId: "",
    fields: { tenant: "acme-eu" },
    createTime: expect.any(Date),
    updateTime: expect.any(Date),
  });
  expect([made[1]?.oauthAppId, made[1]?.fields]).toEqual([ownOauthApp, {}]);
  const list = (more: object) => api.listAppOverrides(more, call(project.token));
  const first = await list({ pageSize: 2 });
  const second = await list({ pageSize: 2, pageToken: first.nextPageToken });
  const listed = [...first.appOverrides, ...second.appOverrides];
  expect(listed.toSorted((a, b) => (a.id < b.id ? -1 : 1))).toEqual(made.toSorted((a, b) => (a.id < b.id ? -1 : 1)));
  expect(second).toMatchObject({ nextPageToken: "", totalSize: 3 });
  expect((await list({ appSlug: "sandbox" })).appOverrides).toEqual([made[1]]);
  expect((await api.listAppOverrides({}, call(other.token))).totalSize).toBe(0);
});

test("fills in a field whatever its name looks like", async () => {
  const { token, projectId } = await newProject(account);
  const request = { projectId, appSlug: "snake_oauth", clientId: "c", clientSecret: "s" };
  await account.operator.createOauthApp(request, call());
  const fields = { company_name: "acme-eu" };
  const { id: appOverrideId } = await create({ appSlug: "snake_oauth", fields }, token);
  expect((await api.getAppOverride({ appOverrideId }, call(token))).appOverride?.fields).toEqual(fields);
  const start = { appSlug: "snake_oauth", browserBinding: binding, appOverrideId, fields: { region: "eu" } };
  await api.startConnection(start, call(await newConnectToken(account, token)));
  expect(lastOf("startAuthorization")).toMatchObject({ fields: { company_name: "acme-eu", region: "eu" } });
});

test.each<[string, string, Partial<CreateAppOverrideRequest>]>([
  ["a secret field", "fields.api_key", { fields: { api_key: "sandbox-key-evil" } }],
  ["a field that the app does not have", "fields", { fields: { tenant: "acme", nothing: "evil-value" } }],
  ["an empty value", "fields.tenant", { fields: { tenant: "" } }],
])("refuses %s, names it and repeats no value", async (_, field, more) => {
  const refusal = await create(more).catch((error) => error);
  expect(refusal).toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field }] });
  expect(`${refusal.message} ${JSON.stringify(refusal.violations)}`).not.toMatch(/evil|nothing/);
  const { id } = await create({ fields: { tenant: "acme-eu" } });
  await expect(update(id, more)).rejects.toMatchObject({ violations: [{ field }] });
  expect((await find(id)).appOverride?.fields).toEqual({ tenant: "acme-eu" });
});

test("keeps names unique in a project, at the same time too", async () => {
  const taken = { code: "INVALID_ARGUMENT", violations: [{ field: "name" }] };
  await create({ name: "Taken" });
  await expect(create({ name: "Taken", appSlug: "sandbox" })).rejects.toMatchObject(taken);
  await create({ name: "Taken" }, other.token);
  const { id } = await create();
  await expect(update(id, { name: "Taken" })).rejects.toMatchObject(taken);
  const made = await Promise.allSettled(Array.from({ length: 5 }, () => create({ name: "At once" })));
  expect(made.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  for (const answer of made) if (answer.status === "rejected") expect(answer.reason).toMatchObject(taken);
});

test("takes an OAuth app of the same app and project alone", async () => {
  const gone = { code: "NOT_FOUND", message: "No such OAuth app." };
  await expect(create({ oauthAppId })).rejects.toMatchObject(gone);
  const foreign = await newOauthApp(account, other.projectId);
  await expect(create({ appSlug: "sandbox", oauthAppId: foreign })).rejects.toMatchObject(gone);
  const { id } = await create();
  await expect(update(id, { oauthAppId })).rejects.toMatchObject(gone);
  await expect(create({ appSlug: "nothing" })).rejects.toMatchObject({ reason: "APP_NOT_FOUND" });
});

test("changes what is given; an empty OAuth app and cleared fields take away what was there", async () => {
  const { id, ...made } = await create({ appSlug: "sandbox", oauthAppId });
  const renamed = await update(id, { name: "Renamed" });
  expect(renamed.appOverride).toEqual({ ...made, id, name: "Renamed", updateTime: expect.any(Date) });
  expect(await find(id)).toEqual(renamed);
  expect((await update(id, { oauthAppId: "" })).appOverride).toMatchObject({ name: "Renamed", oauthAppId: "" });
  const { id: filled } = await create({ fields: { tenant: "acme-eu" } });
  expect((await update(filled, { name: "Filled" })).appOverride?.fields).toEqual({ tenant: "acme-eu" });
  expect((await update(filled, { fields: { tenant: "acme-us" } })).appOverride?.fields).toEqual({ tenant: "acme-us" });
  const both = update(filled, { clearFields: true, fields: { tenant: "x" } });
  await expect(both).rejects.toMatchObject({ violations: [{ field: "clear_fields" }] });
  const cleared = await update(filled, { clearFields: true });
  expect([cleared.appOverride?.name, cleared.appOverride?.fields]).toEqual(["Filled", {}]);
});

test("deletes an app override, once", async () => {
  const { id } = await create();
  await api.deleteAppOverride({ appOverrideId: id }, call(acme.token));
  await expect(find(id)).rejects.toMatchObject(notFound);
  await expect(api.deleteAppOverride({ appOverrideId: id }, call(acme.token))).rejects.toMatchObject(notFound);
});

test("is another project's business in no way", async () => {
  const { id, name } = await create({ appSlug: "sandbox", oauthAppId });
  await expect(api.getAppOverride({ appOverrideId: id }, call(other.token))).rejects.toMatchObject(notFound);
  await expect(update(id, { name: "Mine" }, other.token)).rejects.toMatchObject(notFound);
  await expect(api.deleteAppOverride({ appOverrideId: id }, call(other.token))).rejects.toMatchObject(notFound);
  expect((await find(id)).appOverride?.name).toBe(name);
  await newOauthApp(account, other.projectId);
  const token = await newConnectToken(account, other.token);
  const start = { appSlug: "sandbox", appOverrideId: id, browserBinding: binding };
  await expect(api.startConnection(start, call(token))).rejects.toMatchObject(notFound);
  const answer = await api.validateConnectToken({ connectToken: token, appOverrideId: id }, call());
  expect(answer).toMatchObject({ valid: false, error: "No such app override." });
});

test("writes the audit of each change", async () => {
  const { id } = await create({ name: "Audited", fields: { tenant: "acme-eu" } });
  await update(id, { fields: { tenant: "acme-us" } });
  await api.deleteAppOverride({ appOverrideId: id }, call(acme.token));
  const entries = await db
    .selectFrom("auditEntries")
    .select(["action", "actor", "before", "after"])
    .where("resourceId", "=", id)
    .orderBy("createTime")
    .execute();
  const [eu, us] = ["acme-eu", "acme-us"].map((tenant) => ({ name: "Audited", fields: { tenant } }));
  expect(entries).toMatchObject([
    { action: "CreateAppOverride", actor: acme.clientId, before: null, after: eu },
    { action: "UpdateAppOverride", actor: acme.clientId, before: eu, after: us },
    { action: "DeleteAppOverride", actor: acme.clientId, before: us, after: null },
  ]);
});

test("says what the override fills in and which OAuth app it chooses, and names the app", async () => {
  const filled = await create({ fields: { tenant: "acme-eu" } });
  const connectToken = await newConnectToken(account, acme.token);
  const validate = (more: object) => api.validateConnectToken({ connectToken, ...more }, call());
  expect(await validate({ appOverrideId: filled.id })).toMatchObject({
    valid: true,
    app: { slug: "tenant_key" },
    appOverrideId: filled.id,
    appOverrideFieldNames: ["tenant"],
  });
  const chosen = await create({ appSlug: "sandbox", oauthAppId });
  expect(await validate({ appOverrideId: chosen.id })).toMatchObject({ valid: true, oauthAppId });
  expect(await validate({ appSlug: "sandbox" })).toMatchObject({ oauthAppId: newestOauthAppId, appOverrideId: "" });
  const conflict = await validate({ appOverrideId: chosen.id, oauthAppId: newestOauthAppId });
  expect(conflict).toMatchObject({ valid: false, error: expect.stringContaining("oauth_app_id") });
  expect(await validate({ appSlug: "sandbox", appOverrideId: filled.id })).toMatchObject({
    valid: false,
    error: "No such app override.",
  });
});

test("puts its values over the user's in CreateAccount", async () => {
  const { id: appOverrideId } = await create({ fields: { tenant: "acme-eu" } });
  const make = (values: Record<string, string>, more = {}) =>
    api.createAccount(
      {
        environment: development,
        externalUserId: "ann",
        appSlug: "tenant_key",
        appOverrideId,
        credential: { $case: "fields", value: { values } },
        ...more,
      },
      call(acme.token),
    );
  await make({ api_key: "sandbox-key-0123", tenant: "the-users-own" });
  expect(lastOf("storeCredential")).toMatchObject({
    material: { value: { values: { api_key: "sandbox-key-0123", tenant: "acme-eu" } } },
  });
  await expect(make({})).rejects.toMatchObject({ violations: [{ field: "fields.api_key" }] });
  await expect(make({ api_key: "x" }, { appSlug: "sandbox_header_key" })).rejects.toMatchObject(notFound);
  const grant = { $case: "grant", value: { accessToken: "the-access-token" } } as const;
  const imported = make({}, { appSlug: "sandbox", credential: grant });
  await expect(imported).rejects.toMatchObject({ violations: [{ field: "app_override_id" }] });
});

test("refuses values with which the app's base URL is none, wherever they come from", async () => {
  const { id: appOverrideId } = await create({ fields: { tenant: "evil.example/x" } });
  const request = { environment: development, externalUserId: "ann", appSlug: "tenant_key", appOverrideId } as const;
  const credential = { $case: "fields", value: { values: { api_key: "sandbox-key-0123" } } } as const;
  const made = api.createAccount({ ...request, credential }, call(acme.token));
  await expect(made).rejects.toMatchObject({ violations: [{ field: "fields" }] });
});

test("chooses the OAuth app of a connection", async () => {
  const { id: appOverrideId } = await create({ appSlug: "sandbox", oauthAppId });
  const start = async (more: object, bound: object = {}) => {
    const token = await newConnectToken(account, acme.token, bound);
    return api.startConnection({ appSlug: "sandbox", browserBinding: binding, appOverrideId, ...more }, call(token));
  };
  await start({});
  expect(lastOf("startAuthorization")).toMatchObject({ oauthAppId });
  await start({ oauthAppId });
  const conflict = { code: "INVALID_ARGUMENT", violations: [{ field: "oauth_app_id" }] };
  await expect(start({ oauthAppId: newestOauthAppId })).rejects.toMatchObject(conflict);
  await expect(start({}, { oauthAppId: newestOauthAppId })).rejects.toMatchObject(conflict);
  const { id: ofAnotherApp } = await create();
  await expect(start({ appOverrideId: ofAnotherApp })).rejects.toMatchObject(notFound);
});

test("puts its values over the user's in StartConnection, and asks for the rest", async () => {
  const client = { appSlug: "tenant_oauth", clientId: "c", clientSecret: "s" };
  const { oauthApp } = await api.createOauthApp(client, call(acme.token));
  const override = { appSlug: "tenant_oauth", oauthAppId: oauthApp?.id ?? "", fields: { tenant: "acme-eu" } };
  const { id: appOverrideId } = await create(override);
  const start = async (fields: Record<string, string>) => {
    const request = { appSlug: "tenant_oauth", browserBinding: binding, appOverrideId, fields };
    return api.startConnection(request, call(await newConnectToken(account, acme.token)));
  };
  await start({ tenant: "the-users-own", region: "eu" });
  expect(lastOf("startAuthorization")).toMatchObject({
    oauthAppId: oauthApp?.id,
    fields: { tenant: "acme-eu", region: "eu" },
  });
  await expect(start({})).rejects.toMatchObject({ violations: [{ field: "fields.region" }] });
});
