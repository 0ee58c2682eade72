// DeleteUser: everything of the user is revoked and erased, in each table; tombstones and receipts stay, nobody else is touched,
// and a repeat goes on where the first was broken off.
import { sql } from "kysely";
import { expect, test } from "vitest";
import { AccountState } from "#proto/deputy/account/v1/accounts.ts";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { sweepConnecting } from "../../services/account/sweep-connecting.ts";
import {
  binding,
  call,
  collect,
  development,
  keyFields,
  memberToken,
  newConnectToken,
  newKeyAccount,
  newOauthApp,
  newProject,
  production,
  startAccount,
} from "./harness.ts";

const account = await startAccount();
const { api, gateway, vault, vaultClient, db } = account;

const tables = ["accounts", "connections", "connect_tokens", "external_users", "events", "audit_entries"];
const moreTables = [
  "account_reservations",
  "webhook_endpoints",
  "webhook_deliveries",
  "webhook_lanes",
  "own_oauth_clients",
];

/** The tables in which a text stands anywhere, of one project. */
async function mentions(projectId: string, text: string): Promise<readonly string[]> {
  const found: string[] = [];
  for (const table of [...tables, ...moreTables]) {
    const { rows } = await sql<{ count: bigint }>`
      select count(*) from ${sql.table(table)} as one where project_id = ${projectId} and one::text like ${`%${text}%`}`.execute(
      db,
    );
    if (Number(rows[0]?.count) > 0) found.push(table);
  }
  return found;
}

const remove = (token: string, externalUserId: string, more = {}) =>
  api.deleteUser({ environment: development, externalUserId, ...more }, call(token));

/** A user with a trace in every table, and that user's accounts. */
async function startTraces(externalUserId: string) {
  const acme = await newProject(account);
  await newOauthApp(account, acme.projectId);
  const link = await newConnectToken(account, acme.token, { externalUserId });
  const started = await api.startConnection({ appSlug: "sandbox", browserBinding: binding }, call(link));
  const state = new URL(started.authorizationUrl).searchParams.get("state") ?? "";
  const { connection } = await gateway.completeConnection({ state, code: "c", browserBinding: binding }, call());
  const connected = connection?.accountId ?? "";
  const named = await newKeyAccount(account, acme.token, externalUserId);
  const name = `Name of ${externalUserId}`;
  const update = { environment: development, accountId: named.id, name } as const;
  await api.updateAccount(update, call(acme.token));
  const gone = await newKeyAccount(account, acme.token, externalUserId);
  const own = await newConnectToken(account, acme.token, { externalUserId });
  await api.deleteAccount({ environment: development, accountId: gone.id }, call(own));
  return { ...acme, connected, named, gone, own, name, connectionId: started.connectionId };
}

test("revokes and erases a user, and leaves tombstones, receipts and a pseudonym", async () => {
  const externalUserId = "ursula@example.test";
  const { token, projectId, connected, named, gone, name } = await startTraces(externalUserId);
  expect(await mentions(projectId, externalUserId)).toEqual(tables);
  expect(await mentions(projectId, name)).toEqual(["accounts", "audit_entries"]);
  const { receipts } = await remove(token, externalUserId);
  expect(receipts.map(({ accountId }) => accountId).sort()).toEqual([connected, named.id, gone.id].sort());
  expect(receipts.every(({ jws, accountId }) => jws === `signed-${accountId}`)).toBe(true);
  for (const text of [externalUserId, name, "ann@provider.test"]) expect(await mentions(projectId, text)).toEqual([]);
  const erased = vault.callsOf("eraseUser").at(-1)?.request as { externalUserId: string; pseudonym: string };
  expect(erased).toMatchObject({ projectId, environment: development, externalUserId });
  const list = { environment: development, state: AccountState.REVOKED } as const;
  const { accounts } = await api.listAccounts(list, call(token));
  expect(accounts).toHaveLength(3);
  for (const tombstone of accounts) {
    expect(tombstone).toMatchObject({ externalUserId: erased.pseudonym, name: "", authorizedScopes: [] });
  }
  const entries = await db
    .selectFrom("auditEntries")
    .selectAll()
    .where("projectId", "=", projectId)
    .orderBy("createTime")
    .execute();
  const actionsOn = (id: string) => entries.filter(({ resourceId }) => resourceId === id).map(({ action }) => action);
  expect(actionsOn(erased.pseudonym)).toEqual(["DeleteUser"]);
  expect(actionsOn(named.id).sort()).toEqual(["CreateAccount", "DeleteUser", "UpdateAccount"]);
  const byUser = entries.find(({ resourceId, action }) => resourceId === gone.id && action === "DeleteAccount");
  expect(byUser?.actor).toBe(`user:${erased.pseudonym}`);
  const events = await db
    .selectFrom("events")
    .selectAll()
    .where("projectId", "=", projectId)
    .orderBy("sequence")
    .execute();
  const revoked = events.filter(({ type }) => type === "account.revoked");
  expect(revoked.map(({ accountId }) => accountId).sort()).toEqual([connected, named.id, gone.id].sort());
  expect(revoked[0]).toMatchObject({ externalUserId: erased.pseudonym, data: { providerRevocation: "PENDING" } });
});

test("erases what was being connected too, and addresses that only the user's tokens named", async () => {
  const acme = await newProject(account);
  await newOauthApp(account, acme.projectId);
  const shared = "https://hooks.acme.com/all";
  const named = "https://hooks.acme.com/of?user=walter";
  const careful = { requireVerification: true, successRedirectUri: "https://app.acme.com/x" };
  const user = { externalUserId: "walter" };
  const create = async (token: string) =>
    api.createAccount({ appSlug: "sandbox_header_key", credential: keyFields }, call(token));
  await create(await newConnectToken(account, acme.token, { ...user, webhookUri: named }));
  await create(await newConnectToken(account, acme.token, { ...user, webhookUri: shared }));
  await create(await newConnectToken(account, acme.token, { externalUserId: "other", webhookUri: shared }));
  await create(await newConnectToken(account, acme.token, { ...user, ...careful, webhookUri: named }));
  const link = await newConnectToken(account, acme.token, { ...user, webhookUri: named });
  await api.startConnection({ appSlug: "sandbox", browserBinding: binding }, call(link));
  expect(await mentions(acme.projectId, "walter")).toEqual([...tables, "account_reservations", "webhook_endpoints"]);
  const own = await newConnectToken(account, acme.token, { ...user, webhookUri: named });
  expect((await remove(own, "walter")).receipts).toHaveLength(2);
  expect(await mentions(acme.projectId, "walter")).toEqual([]);
  const endpoints = await db
    .selectFrom("webhookEndpoints")
    .selectAll()
    .where("projectId", "=", acme.projectId)
    .execute();
  expect(endpoints.map(({ url }) => url)).toEqual([shared]);
  const waiting = await db
    .selectFrom("webhookDeliveries")
    .selectAll()
    .where("projectId", "=", acme.projectId)
    .where("state", "=", "PENDING")
    .execute();
  expect(new Set(waiting.map(({ endpointId }) => endpointId))).toEqual(new Set(endpoints.map(({ id }) => id)));
  // What the vault may still hold is destroyed, although nobody knows any more whose it was.
  const doomed = await db
    .selectFrom("accountReservations")
    .selectAll()
    .where("projectId", "=", acme.projectId)
    .execute();
  expect(doomed).toHaveLength(2);
  await sweepConnecting({ db, vault: vaultClient }, new Date());
  expect(doomed.every(({ accountId, doomed }) => doomed && vault.destroyed.has(accountId))).toBe(true);
});

test("gives a repeat the same receipts, and writes nothing again", async () => {
  const { token, projectId } = await startTraces("vera");
  const { receipts } = await remove(token, "vera");
  const entries = await db.selectFrom("auditEntries").select("id").where("projectId", "=", projectId).execute();
  const again = await remove(token, "vera");
  const ids = (of: typeof receipts) => of.map(({ accountId, destroyTime }) => [accountId, destroyTime]).sort();
  expect(ids(again.receipts)).toEqual(ids(receipts));
  const after = await db.selectFrom("auditEntries").select("id").where("projectId", "=", projectId).execute();
  expect(after).toHaveLength(entries.length);
  expect((await remove(token, "never-there")).receipts).toEqual([]);
});

test("takes up after a failure at each step what it has begun", async () => {
  const { token, projectId, connected, named, gone } = await startTraces("wanda");
  for (const method of ["destroyCredentials", "eraseUser"]) {
    vault.failNext(method);
    await expect(remove(token, "wanda")).rejects.toMatchObject({ code: "UNAVAILABLE" });
    expect(await mentions(projectId, "wanda")).toContain("accounts");
  }
  await account.owner.query(
    "alter table accounts add constraint broken check (external_user_id !~ '^erased_') not valid",
  );
  await expect(remove(token, "wanda")).rejects.toMatchObject({ code: "INTERNAL" });
  await account.owner.query("alter table accounts drop constraint broken");
  expect(await mentions(projectId, "wanda")).toContain("external_users");
  const { receipts } = await remove(token, "wanda");
  expect(receipts.map(({ accountId }) => accountId).sort()).toEqual([connected, named.id, gone.id].sort());
  expect(await mentions(projectId, "wanda")).toEqual([]);
  const events = await db
    .selectFrom("events")
    .selectAll()
    .where("projectId", "=", projectId)
    .orderBy("sequence")
    .execute();
  expect(events.filter(({ type }) => type === "account.revoked")).toHaveLength(3);
});

test("lets nothing be connected while it runs: the tokens are used up and the connections have ended", async () => {
  const acme = await newProject(account);
  await newOauthApp(account, acme.projectId);
  await newKeyAccount(account, acme.token, "xenia");
  const link = await newConnectToken(account, acme.token, { externalUserId: "xenia" });
  const started = await api.startConnection({ appSlug: "sandbox", browserBinding: binding }, call(link));
  const state = new URL(started.authorizationUrl).searchParams.get("state") ?? "";
  const unused = await newConnectToken(account, acme.token, { externalUserId: "xenia" });
  let outcome: unknown;
  vault.hooks.before = async (method) => {
    if (method !== "destroyCredentials") return;
    delete vault.hooks.before;
    const completed = gateway.completeConnection({ state, code: "c", browserBinding: binding }, call());
    const created = api.createAccount({ appSlug: "sandbox_header_key", credential: keyFields }, call(unused));
    outcome = await Promise.all([completed, created.catch((error) => error)]);
  };
  await remove(acme.token, "xenia");
  expect(outcome).toMatchObject([
    { connection: { state: ConnectionState.FAILED, error: "The user was erased." } },
    { reason: "CONNECT_TOKEN_INVALID" },
  ]);
  expect(await mentions(acme.projectId, "xenia")).toEqual([]);
  await expect(api.listAccounts({}, call(unused))).rejects.toMatchObject({ reason: "CONNECT_TOKEN_INVALID" });
  const gone = gateway.completeConnection({ state, code: "c", browserBinding: binding }, call());
  await expect(gone).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("touches no other user, environment or project", async () => {
  const { token, projectId } = await startTraces("yara");
  const other = await startTraces("yara");
  const kept = await newKeyAccount(account, token, "yara-2");
  const inProduction = await api.createAccount(
    { environment: production, externalUserId: "yara", appSlug: "sandbox_header_key", credential: keyFields },
    call(token),
  );
  await remove(token, "yara");
  const get = (environment: 1 | 2, accountId: string) => api.getAccount({ environment, accountId }, call(token));
  expect((await get(development, kept.id)).account?.externalUserId).toBe("yara-2");
  expect((await get(production, inProduction.account?.id ?? "")).account?.externalUserId).toBe("yara");
  expect(await mentions(other.projectId, "yara")).toEqual(tables);
  const foreign = remove(other.token, "yara", { projectId });
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such project." });
});

test("lets a user come back under the same id, with nothing of before", async () => {
  const { token } = await startTraces("zita");
  await remove(token, "zita");
  const again = await newKeyAccount(account, token, "zita");
  const list = await api.listAccounts({ environment: development, externalUserId: "zita" }, call(token));
  expect(list.accounts.map(({ id }) => id)).toEqual([again.id]);
  const { receipts } = await remove(token, "zita");
  expect(receipts.map(({ accountId }) => accountId)).toContain(again.id);
  expect(receipts).toHaveLength(4);
});

test("is for the project, its admins and the user's own browser, and not for other members or lesser scopes", async () => {
  const { token, projectId, own } = await startTraces("anna");
  const member = await memberToken(account, projectId, "bob");
  const denied = { code: "PERMISSION_DENIED", reason: "MEMBER_NOT_ALLOWED" };
  await expect(remove(member, "anna")).rejects.toMatchObject(denied);
  const reader = await memberToken(account, projectId, "ada", { role: "admin", scope: "connect:users:read" });
  await expect(remove(reader, "anna")).rejects.toMatchObject({ reason: "SCOPE_MISSING" });
  const stranger = await newConnectToken(account, token, { externalUserId: "other" });
  await expect(remove(stranger, "anna")).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such user." });
  const target = { $case: "externalUserId", value: "anna" } as const;
  const left = await collect(api.revokeAllAccounts({ environment: development, target, dryRun: true }, call(token)));
  expect(left).toHaveLength(2);
  expect((await remove(own, "anna")).receipts).toHaveLength(3);
  const admin = await memberToken(account, projectId, "ada", { role: "admin" });
  expect((await remove(admin, "anna")).receipts).toHaveLength(3);
});
