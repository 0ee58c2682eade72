// Projects listed, changed and deleted, by the operator and by their own callers; and what ends with a project.
import { expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { insertAccount } from "../../services/account/accounts.ts";
import {
  binding,
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
const { operator, api, gateway, vault, db } = account;

const entriesOf = async (projectId: string) => (await operator.listAuditEntries({ projectId }, call())).entries;
const absent = { code: "NOT_FOUND", message: "No such project." };

test("lists projects in pages, found by a part of their names, deleted ones left out", async () => {
  const names = ["Zebra one", "zebra TWO", "Other", "ZEBRA three"];
  const ids = [];
  for (const name of names) ids.push((await operator.createProject({ name }, call())).project?.id ?? "");
  const first = await operator.listProjects({ query: "zebra", pageSize: 2 }, call());
  expect(first.projects.map(({ name }) => name)).toEqual(["Zebra one", "zebra TWO"]);
  expect(first.totalSize).toBe(3);
  const next = { query: "zebra", pageSize: 2, pageToken: first.nextPageToken };
  const second = await operator.listProjects(next, call());
  expect(second.projects.map(({ name }) => name)).toEqual(["ZEBRA three"]);
  expect(second.nextPageToken).toBe("");
  // What is searched for is a text, not a pattern.
  expect((await operator.listProjects({ query: "zebra%" }, call())).projects).toEqual([]);
  await operator.deleteProject({ projectId: ids[3] ?? "" }, call());
  expect((await operator.listProjects({ query: "zebra" }, call())).totalSize).toBe(2);
});

test("lists for an API client its own project alone", async () => {
  const { projectId, token } = await newProject(account);
  await newProject(account);
  const { projects, totalSize } = await api.listProjects({}, call(token));
  expect([projects.map(({ id }) => id), totalSize]).toEqual([[projectId], 1]);
  expect((await api.listProjects({ query: "nothing like it" }, call(token))).projects).toEqual([]);
  const narrow = await newProject(account, ["connect:accounts:read"]);
  await expect(api.listProjects({}, call(narrow.token))).rejects.toMatchObject({ reason: "SCOPE_MISSING" });
});

test("makes projects for the operator alone, and tells a token how they are made", async () => {
  const { token } = await newProject(account);
  for (const client of [api, gateway]) {
    await expect(client.createProject({ name: "x" }, call(token))).rejects.toMatchObject({
      code: "PERMISSION_DENIED",
      reason: "OPERATOR_REQUIRED",
      message: expect.stringContaining("operator"),
    });
  }
});

test("changes what is given and leaves the rest, and tells it in the audit", async () => {
  const { projectId, clientId, token } = await newProject(account);
  const made = (await api.getProject({}, call(token))).project;
  expect(made?.requireKeyAuthTest).toBe(false);
  const { project } = await api.updateProject({ appName: "", requireKeyAuthTest: true }, call(token));
  expect(project).toMatchObject({
    name: "Acme",
    appName: "",
    supportEmail: "help@acme.test",
    requireKeyAuthTest: true,
  });
  expect(project?.createTime).toEqual(made?.createTime);
  expect(project?.updateTime?.getTime()).toBeGreaterThan(made?.updateTime?.getTime() ?? 0);
  expect((await operator.getProject({ projectId }, call())).project).toEqual(project);
  const [entry] = await entriesOf(projectId);
  expect(entry).toMatchObject({
    actor: clientId,
    action: "UpdateProject",
    resourceId: projectId,
    before: { name: "Acme", appName: "Acme CRM", requireKeyAuthTest: false },
    after: { name: "Acme", appName: "", supportEmail: "help@acme.test", requireKeyAuthTest: true },
  });
  expect((await api.updateProject({}, call(token))).project).toEqual(project);
  expect(await entriesOf(projectId)).toHaveLength(3);
});

test("keeps that keys are to be tried, from the start on", async () => {
  const { project } = await operator.createProject({ name: "x", requireKeyAuthTest: true }, call());
  expect(project?.requireKeyAuthTest).toBe(true);
  const changed = await operator.updateProject({ projectId: project?.id ?? "", requireKeyAuthTest: false }, call());
  expect(changed.project?.requireKeyAuthTest).toBe(false);
});

test("changes and deletes no project but the caller's own", async () => {
  const { projectId } = await newProject(account);
  const other = await newProject(account);
  await expect(api.updateProject({ projectId, name: "mine" }, call(other.token))).rejects.toMatchObject(absent);
  await expect(api.deleteProject({ projectId }, call(other.token))).rejects.toMatchObject(absent);
  await expect(operator.updateProject({ projectId: "proj_x", name: "y" }, call())).rejects.toMatchObject(absent);
  await expect(operator.deleteProject({ projectId: "proj_x" }, call())).rejects.toMatchObject(absent);
  const reader = await newProject(account, ["connect:projects:read"]);
  for (const attempt of [
    api.updateProject({ name: "y" }, call(reader.token)),
    api.deleteProject({}, call(reader.token)),
  ])
    await expect(attempt).rejects.toMatchObject({ code: "PERMISSION_DENIED", reason: "SCOPE_MISSING" });
  await expect(operator.updateProject({ projectId, name: "" }, call())).rejects.toMatchObject({
    code: "INVALID_ARGUMENT",
    violations: [{ field: "name" }],
  });
});

test("refuses to delete a project with accounts in either environment, and says how many", async () => {
  const { projectId, token } = await newProject(account);
  const one = await newKeyAccount(account, token);
  const [two = ""] = await insertAccounts(account, projectId, 1);
  await db.updateTable("accounts").set({ environment: production }).where("id", "=", two).execute();
  const refused = { code: "FAILED_PRECONDITION", reason: "PROJECT_IN_USE" };
  await expect(operator.deleteProject({ projectId }, call())).rejects.toMatchObject({
    ...refused,
    metadata: { count: "2" },
    message: expect.stringContaining("2 accounts"),
  });
  await api.deleteAccount({ environment: production, accountId: two }, call(token));
  // One whose revocation is under way may still have its credential.
  await db
    .updateTable("accounts")
    .set({ state: "REVOKING", revokeTime: new Date() })
    .where("id", "=", one.id)
    .execute();
  await expect(operator.deleteProject({ projectId }, call())).rejects.toMatchObject(refused);
  expect((await api.getProject({}, call(token))).project?.id).toBe(projectId);
  await api.deleteAccount({ environment: development, accountId: one.id }, call(token));
  await operator.deleteProject({ projectId }, call());
});

test("ends with a project whatever could act for it, and keeps what is proof", async () => {
  const { projectId, clientId, clientSecret, token } = await newProject(account);
  const oauthAppId = await newOauthApp(account, projectId);
  await operator.createAppOverride({ projectId, appSlug: "sandbox", name: "pinned", oauthAppId }, call());
  const { id: accountId } = await newKeyAccount(account, token);
  await api.deleteAccount({ environment: development, accountId }, call(token));
  const connectToken = await newConnectToken(account, token);
  const { connectionId } = await api.startConnection(
    { appSlug: "sandbox", browserBinding: binding },
    call(connectToken),
  );
  await operator.deleteProject({ projectId }, call());

  await expect(operator.getProject({ projectId }, call())).rejects.toMatchObject(absent);
  await expect(operator.updateProject({ projectId, name: "again" }, call())).rejects.toMatchObject(absent);
  await expect(operator.deleteProject({ projectId }, call())).rejects.toMatchObject(absent);
  await expect(operator.createApiClient({ projectId }, call())).rejects.toMatchObject(absent);
  const grant = { $case: "clientCredentials", value: { clientId, clientSecret } } as const;
  await expect(api.issueAccessToken({ grant }, call())).rejects.toMatchObject({ reason: "CLIENT_INVALID" });
  await expect(api.listAccounts({}, call(connectToken))).rejects.toMatchObject({ reason: "CONNECT_TOKEN_INVALID" });
  const exchange = { grant: { $case: "connectToken", value: connectToken } } as const;
  await expect(api.issueAccessToken(exchange, call())).rejects.toMatchObject({ reason: "CONNECT_TOKEN_INVALID" });
  expect((await operator.validateConnectToken({ connectToken }, call())).valid).toBe(false);
  // The access tokens of before live to their end, and find nothing to act on.
  await expect(newConnectToken(account, token)).rejects.toMatchObject(absent);
  await expect(newKeyAccount(account, token)).rejects.toMatchObject(absent);
  expect((await api.listUsers({ environment: development }, call(token))).users).toEqual([]);
  const connection = await operator.getConnection({ projectId, environment: development, connectionId }, call());
  expect(connection.connection?.state).toBe(ConnectionState.FAILED);
  expect(vault.callsOf("destroyOauthClient").at(-1)?.request).toEqual({ projectId, oauthAppId });
  expect((await operator.listOauthApps({ projectId }, call())).oauthApps).toEqual([]);

  const tombstone = await db.selectFrom("accounts").select("state").where("id", "=", accountId).executeTakeFirst();
  expect(tombstone?.state).toBe("REVOKED");
  const [last] = await entriesOf(projectId);
  expect(last).toMatchObject({ action: "DeleteProject", actor: "service:operator", before: { name: "Acme" } });
  expect(last?.after).toBeUndefined();
});

test("takes a deletion up again that the vault has interrupted", async () => {
  const { projectId } = await newProject(account);
  await newOauthApp(account, projectId);
  vault.failNext("destroyOauthClient", new StatusError("UNAVAILABLE", "DOWN", "The vault is down."));
  await expect(operator.deleteProject({ projectId }, call())).rejects.toMatchObject({ code: "UNAVAILABLE" });
  await expect(operator.getProject({ projectId }, call())).rejects.toMatchObject(absent);
  await operator.deleteProject({ projectId }, call());
  expect((await operator.listOauthApps({ projectId }, call())).oauthApps).toEqual([]);
  expect((await entriesOf(projectId)).filter(({ action }) => action === "DeleteProject")).toHaveLength(1);
  await expect(operator.deleteProject({ projectId }, call())).rejects.toMatchObject(absent);
});

/** A project with everything that a deletion has to end at the vault or step by step. */
async function newFullProject() {
  const { projectId, token } = await newProject(account);
  const oauthAppId = await newOauthApp(account, projectId);
  const definition = JSON.stringify({
    ...{ slug: "own", name: "Own", auth: "keys", custom_fields: [{ name: "api_key", label: "Key", secret: true }] },
    proxy: {
      ...{ enabled: true, base_url: "https://api.crm.com", allowed_domains: ["api.crm.com"] },
      inject: { headers: { authorization: "Bearer {{credential.api_key}}" } },
    },
  });
  await api.createApp({ definition }, call(token));
  const webhooks = [];
  for (const environment of [development, production] as const) {
    const url = "https://hooks.acme.com/deputy";
    webhooks.push((await api.setWebhook({ environment, url }, call(token))).webhook?.id ?? "");
  }
  const webhookUri = "https://hooks.acme.com/connections";
  const own = await newConnectToken(account, token, { externalUserId: "own", webhookUri });
  const customOauthClient = { clientId: "my-client", clientSecret: "my-own" };
  const start = { appSlug: "sandbox", browserBinding: binding };
  await api.startConnection({ ...start, customOauthClient }, call(own));
  const { oauthAppId: ownClientId } = { oauthAppId: "", ...vault.callsOf("putOauthClient").at(-1)?.request };
  const careful = { requireVerification: true, successRedirectUri: "https://app.acme-crm.com/x", webhookUri };
  const waiting = await newConnectToken(account, token, { externalUserId: "waiting", ...careful });
  const created = await api.createAccount({ appSlug: "sandbox_header_key", credential: keyFields }, call(waiting));
  return { projectId, token, oauthAppId, webhooks, ownClientId, waitingId: created.connectionId };
}

const remainsOf = async (projectId: string) => {
  const tables = ["oauth_apps", "own_apps", "own_oauth_clients", "webhook_endpoints", "webhook_lanes"];
  const open = ["connections where state in ('PENDING', 'AWAITING_VERIFICATION')"];
  const live = ["account_reservations where not doomed", "webhook_deliveries where state = 'PENDING'"];
  const found: string[] = [];
  for (const from of [...tables, ...open, ...live]) {
    const text = `select from ${from} ${from.includes(" where ") ? "and" : "where"} project_id = $1`;
    if ((await account.owner.query(text, [projectId])).length > 0) found.push(from.split(" ")[0] ?? "");
  }
  return found;
};

test("ends own apps, webhooks with their keys, users' OAuth clients, and what is being connected", async () => {
  const { projectId, oauthAppId, webhooks, ownClientId, waitingId } = await newFullProject();
  const others = await newFullProject();
  const before = await remainsOf(others.projectId);
  expect(before).toEqual([
    "oauth_apps",
    "own_apps",
    "own_oauth_clients",
    "webhook_endpoints",
    "connections",
    "account_reservations",
  ]);
  await operator.deleteProject({ projectId }, call());
  expect(await remainsOf(projectId)).toEqual([]);
  expect(await remainsOf(others.projectId)).toEqual(before);
  const asked = (method: string) =>
    vault
      .callsOf(method)
      .flatMap(({ request }) => ("projectId" in request && request.projectId === projectId ? [request] : []));
  expect(asked("destroyApp")).toEqual([{ projectId, appSlug: "own" }]);
  expect(asked("destroyWebhookKey")).toEqual([
    { projectId, environment: development, webhookId: webhooks[0] },
    { projectId, environment: production, webhookId: webhooks[1] },
  ]);
  const clients = [
    { projectId, oauthAppId: ownClientId },
    { projectId, oauthAppId },
  ];
  expect(asked("destroyOauthClient")).toEqual(clients);
  const get = { projectId, environment: development, connectionId: waitingId } as const;
  const { connection } = await operator.getConnection(get, call());
  expect(connection).toMatchObject({ state: ConnectionState.FAILED, error: "The project was deleted." });
});

test("takes a deletion up again wherever the vault has interrupted it", async () => {
  const { projectId } = await newFullProject();
  for (const method of ["destroyWebhookKey", "destroyOauthClient", "destroyApp"]) {
    vault.failNext(method, new StatusError("UNAVAILABLE", "DOWN", "The vault is down."));
    await expect(operator.deleteProject({ projectId }, call()), method).rejects.toMatchObject({ code: "UNAVAILABLE" });
    expect(await remainsOf(projectId)).not.toEqual([]);
  }
  await operator.deleteProject({ projectId }, call());
  expect(await remainsOf(projectId)).toEqual([]);
  expect((await entriesOf(projectId)).filter(({ action }) => action === "DeleteProject")).toHaveLength(1);
  await expect(operator.deleteProject({ projectId }, call())).rejects.toMatchObject(absent);
});

test("lets nothing be made behind a deletion whose secret the vault was given before", async () => {
  for (const [method, make] of [
    [
      "createWebhookKey",
      (token: string) => api.setWebhook({ environment: development, url: "https://h.acme.com/x" }, call(token)),
    ],
    [
      "putOauthClient",
      (token: string) => api.createOauthApp({ appSlug: "sandbox", clientId: "c", clientSecret: "s" }, call(token)),
    ],
  ] as const) {
    const { projectId, token } = await newProject(account);
    vault.hooks.before = async (asked) => {
      if (asked !== method) return;
      delete vault.hooks.before;
      await operator.deleteProject({ projectId }, call());
    };
    await expect(make(token), method).rejects.toMatchObject(absent);
    expect(await remainsOf(projectId)).toEqual([]);
    const undone = method === "createWebhookKey" ? "destroyWebhookKey" : "destroyOauthClient";
    expect(vault.callsOf(undone).at(-1)?.request).toMatchObject({ projectId });
  }
});

test("waits for an account that is being made, and lets none be made behind a deletion", async () => {
  const { projectId } = await newProject(account);
  const whose = { projectId, environment: development, externalUserId: "ann", appSlug: "sandbox_header_key" } as const;
  const fresh = (id: string) => ({ ...whose, id, oauthAppId: "", name: "", authorizedScopes: [] });
  const inserted = Promise.withResolvers<void>();
  const goOn = Promise.withResolvers<void>();
  const making = db.transaction().execute(async (tx) => {
    await insertAccount(tx, fresh("apn_race1"), new Date());
    inserted.resolve();
    await goOn.promise;
  });
  await inserted.promise;
  let ended = false;
  const deletion = operator
    .deleteProject({ projectId }, call())
    .catch(({ reason }) => reason)
    .finally(() => {
      ended = true;
    });
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(ended).toBe(false);
  goOn.resolve();
  await making;
  expect(await deletion).toBe("PROJECT_IN_USE");

  await operator.deleteAccount({ projectId, environment: development, accountId: "apn_race1" }, call());
  await operator.deleteProject({ projectId }, call());
  await expect(insertAccount(db, fresh("apn_race2"), new Date())).rejects.toMatchObject(absent);
});

test("lets a project delete itself by its own client, but not for a plain member", async () => {
  const { projectId, clientId, clientSecret, token } = await newProject(account);
  const as = async (role: 1 | 2 | 3) => {
    const actor = { memberId: "mel", role };
    const grant = { $case: "clientCredentials", value: { clientId, clientSecret, actor } } as const;
    return (await api.issueAccessToken({ grant }, call())).accessToken;
  };
  const member = call(await as(3));
  const refused = { code: "PERMISSION_DENIED", reason: "MEMBER_NOT_ALLOWED" };
  await expect(api.updateProject({ name: "mine" }, member)).rejects.toMatchObject(refused);
  await expect(api.deleteProject({}, member)).rejects.toMatchObject(refused);
  expect((await api.getProject({}, member)).project?.name).toBe("Acme");
  await api.updateProject({ name: "by the admin" }, call(await as(2)));
  expect((await entriesOf(projectId))[0]).toMatchObject({ actor: "member:mel", after: { name: "by the admin" } });
  await api.updateProject({ name: "by the owner" }, call(await as(1)));
  await api.deleteProject({}, call(token));
  await expect(operator.getProject({ projectId }, call())).rejects.toMatchObject(absent);
});

test("lists the apps for which a project has OAuth apps, to its callers and its users' browsers", async () => {
  const { projectId, token } = await newProject(account);
  const other = await newProject(account);
  expect((await api.listProjectApps({}, call(token))).apps).toEqual([]);
  await newOauthApp(account, projectId);
  await newOauthApp(account, projectId);
  const { app } = await api.getApp({ appSlug: "sandbox" }, call());
  const apps = [{ appId: app?.id, appSlug: "sandbox" }];
  expect((await api.listProjectApps({}, call(token))).apps).toEqual(apps);
  const connectToken = await newConnectToken(account, token);
  expect((await api.listProjectApps({}, call(connectToken))).apps).toEqual(apps);
  expect((await api.listProjectApps({}, call(other.token))).apps).toEqual([]);
  await expect(api.listProjectApps({ projectId }, call(other.token))).rejects.toMatchObject(absent);
});
