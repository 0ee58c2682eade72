// Revocation: from the first step on nobody can use the account, receipts prove it, and a repeat finishes what a failure
// has left.
import { expect, test } from "vitest";
import { ProviderRevocation } from "#proto/deputy/account/v1/accounts.ts";
import {
  type Account,
  call,
  collect,
  development,
  insertAccounts,
  newConnectToken,
  newKeyAccount,
  newProject,
  production,
  startAccount,
} from "./harness.ts";

const account = await startAccount();
const { api, operator, vault, db, clock } = account;

type Target = NonNullable<Parameters<Account["api"]["revokeAllAccounts"]>[0]["target"]>;
const everything: Target = { $case: "wholeEnvironment", value: true };
const revokeAll = (token: string, target: Target = everything, more = {}) =>
  collect(api.revokeAllAccounts({ environment: development, target, ...more }, call(token)));
const states = async (projectId: string) => {
  const rows = await db.selectFrom("accounts").select("state").where("projectId", "=", projectId).execute();
  return [...new Set(rows.map(({ state }) => state))].sort();
};
const listed = async (token: string) => (await api.listAccounts({ environment: development }, call(token))).totalSize;

test("deletes an account with a receipt, refuses it from then on, and says so again to a repeat", async () => {
  const acme = await newProject(account);
  const { id } = await newKeyAccount(account, acme.token);
  const request = { environment: development, accountId: id } as const;
  const { receipt } = await api.deleteAccount(request, call(acme.token));
  expect(receipt).toMatchObject({ accountId: id, providerRevocation: ProviderRevocation.PENDING, jws: `signed-${id}` });
  const refusal = await api.getAccount(request, call(acme.token)).catch((error) => error);
  expect(refusal).toMatchObject({ code: "FAILED_PRECONDITION", reason: "ACCOUNT_REVOKED" });
  expect(refusal.message).toMatch(/^The account was revoked at \d{4}-\d\d-\d\dT[\d:.]+Z\.$/);
  const events = db
    .selectFrom("events")
    .select("data")
    .where("accountId", "=", id)
    .where("type", "=", "account.revoked");
  const revokeTime = refusal.message.match(/at (.*)\.$/)?.[1];
  expect(await events.execute()).toMatchObject([{ data: { revokeTime } }]);
  expect(await listed(acme.token)).toBe(0);
  expect((await api.deleteAccount(request, call(acme.token))).receipt).toEqual(receipt);
  const reconnect = api.createAccount(
    {
      environment: development,
      externalUserId: "ann",
      appSlug: "sandbox_header_key",
      accountId: id,
      credential: { $case: "fields", value: { values: { api_key: "sandbox-key-0123" } } },
    },
    call(acme.token),
  );
  await expect(reconnect).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
});

test("deletes the account that is named, not an older one of the same user", async () => {
  const acme = await newProject(account);
  const [older, named] = await insertAccounts(account, acme.projectId, 2);
  await api.deleteAccount({ environment: development, accountId: named ?? "" }, call(acme.token));
  const { accounts } = await api.listAccounts({ environment: development }, call(acme.token));
  expect(accounts.map(({ id }) => id)).toEqual([older]);
});

test("deletes no account of another project, environment or user, and tells them nothing", async () => {
  const acme = await newProject(account);
  const { id } = await newKeyAccount(account, acme.token);
  const absent = { code: "NOT_FOUND", message: "No such account." };
  const remove = (token: string, more = {}) =>
    api.deleteAccount({ environment: development, accountId: id, ...more }, call(token));
  await expect(remove((await newProject(account)).token)).rejects.toMatchObject(absent);
  await expect(remove(acme.token, { environment: production })).rejects.toMatchObject(absent);
  await expect(remove(acme.token, { externalUserId: "bob" })).rejects.toMatchObject(absent);
  await expect(remove(await newConnectToken(account, acme.token, { externalUserId: "bob" }))).rejects.toMatchObject(
    absent,
  );
  expect(await listed(acme.token)).toBe(1);
  await remove(await newConnectToken(account, acme.token, { externalUserId: "ann" }));
  expect(await listed(acme.token)).toBe(0);
  const stranger = api.getAccount({ environment: development, accountId: id }, call((await newProject(account)).token));
  await expect(stranger).rejects.toMatchObject(absent);
});

test("refuses an account as soon as its revocation has begun, whatever the vault does", async () => {
  const acme = await newProject(account);
  const { id } = await newKeyAccount(account, acme.token);
  const request = { environment: development, accountId: id } as const;
  vault.failNext("destroyCredentials");
  await expect(api.deleteAccount(request, call(acme.token))).rejects.toMatchObject({ code: "UNAVAILABLE" });
  expect(await states(acme.projectId)).toEqual(["REVOKING"]);
  await expect(api.getAccount(request, call(acme.token))).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  expect(await listed(acme.token)).toBe(0);
  await api.deleteAccount(request, call(acme.token));
  expect(await states(acme.projectId)).toEqual(["REVOKED"]);
});

test("revokes a whole environment with one receipt for each account, and nothing beside it", async () => {
  const acme = await newProject(account);
  const other = await newProject(account);
  const ids = await insertAccounts(account, acme.projectId, 450);
  await insertAccounts(account, other.projectId, 3);
  await api.createAccount(
    {
      environment: production,
      externalUserId: "ann",
      appSlug: "sandbox_header_key",
      credential: { $case: "fields", value: { values: { api_key: "sandbox-key-0123" } } },
    },
    call(acme.token),
  );
  const receipts = await revokeAll(acme.token);
  expect(receipts.map(({ receipt }) => receipt?.accountId).sort()).toEqual([...ids].sort());
  expect(receipts.every(({ totalSize }) => totalSize === 450)).toBe(true);
  expect(receipts.every(({ receipt }) => receipt?.destroyTime instanceof Date)).toBe(true);
  expect(receipts.every(({ receipt }) => receipt?.jws === `signed-${receipt?.accountId}`)).toBe(true);
  expect(await listed(acme.token)).toBe(0);
  expect(await listed(other.token)).toBe(3);
  expect((await api.listAccounts({ environment: production }, call(acme.token))).totalSize).toBe(1);
  expect(await revokeAll(acme.token)).toEqual([]);
});

test.each<[string, Target, number]>([
  ["a user", { $case: "externalUserId", value: "ann" }, 20],
  ["an app", { $case: "appSlug", value: "sandbox_query_key" }, 10],
  ["an OAuth app", { $case: "oauthAppId", value: "oa_five" }, 4],
])("revokes the accounts of %s and no others", async (_, target, count) => {
  const acme = await newProject(account);
  await insertAccounts(account, acme.projectId, 20);
  await newKeyAccount(account, acme.token, "bob");
  expect(await revokeAll(acme.token, target)).toHaveLength(count);
  expect(await listed(acme.token)).toBe(21 - count);
});

test("takes up after a failure in the middle what it has begun", async () => {
  const acme = await newProject(account);
  const ids = await insertAccounts(account, acme.projectId, 900);
  let batches = 0;
  vault.hooks.before = async (method) => {
    if (method === "destroyCredentials" && ++batches === 2) vault.failNext("destroyCredentials");
  };
  await expect(revokeAll(acme.token)).rejects.toMatchObject({ code: "UNAVAILABLE" });
  delete vault.hooks.before;
  expect(await states(acme.projectId)).toEqual(["ACTIVE", "REVOKED", "REVOKING"]);
  const rest = await revokeAll(acme.token);
  expect(rest).toHaveLength(500);
  expect(rest[0]?.totalSize).toBe(500);
  expect(await states(acme.projectId)).toEqual(["REVOKED"]);
  expect(ids.filter((id) => vault.destroyed.has(id))).toHaveLength(900);
});

/** Holds the vault's answer to the second batch back; `onFirst` runs before it answers to the first. */
function holdSecondBatch(onFirst = async () => {}) {
  const [asked, gate] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  let batches = 0;
  vault.hooks.before = async (method) => {
    if (method !== "destroyCredentials") return;
    batches += 1;
    if (batches === 1) return onFirst();
    asked.resolve();
    await gate.promise;
  };
  const release = () => {
    delete vault.hooks.before;
    gate.resolve();
  };
  return { asked: asked.promise, release };
}

test("has the vault at work on the next batch while the accounts of one are ended, and tells of that one at once", async () => {
  const acme = await newProject(account);
  const ids = (await insertAccounts(account, acme.projectId, 500)).sort();
  // One of the first batch cannot be ended.
  const { asked, release } = holdSecondBatch(async () => {
    await account.owner.query("begin");
    await account.owner.query("select from accounts where id = $1 for update", [ids[0]]);
  });
  const receipts: unknown[] = [];
  const all = (async () => {
    const stream = api.revokeAllAccounts({ environment: development, target: everything }, call(acme.token));
    for await (const { receipt } of stream) receipts.push(receipt?.accountId);
  })();
  await asked;
  expect(await states(acme.projectId)).toEqual(["REVOKING"]);
  await account.owner.query("commit");
  await expect.poll(() => receipts.length, { timeout: 10_000 }).toBe(400);
  expect(await states(acme.projectId)).toEqual(["REVOKED", "REVOKING"]);
  release();
  await all;
  expect(receipts).toEqual(ids);
});

test("leaves what it has begun to be taken up when its caller leaves", async () => {
  const acme = await newProject(account);
  await insertAccounts(account, acme.projectId, 500);
  const { asked, release } = holdSecondBatch();
  const leaving = new AbortController();
  const options = { ...call(acme.token), signal: leaving.signal };
  const stream = api.revokeAllAccounts({ environment: development, target: everything }, options);
  const reading = collect(stream);
  await asked;
  leaving.abort();
  await expect(reading).rejects.toMatchObject({ code: "CANCELLED" });
  release();
  const rest = await revokeAll(acme.token, everything, { includeRevoked: true });
  expect(new Set(rest.map(({ receipt }) => receipt?.accountId)).size).toBe(500);
  expect(await states(acme.projectId)).toEqual(["REVOKED"]);
});

test("revokes what comes while it runs as well, wherever it stands in the order", async () => {
  const acme = await newProject(account);
  await insertAccounts(account, acme.projectId, 10);
  const late = { ...(await accountRow(acme.projectId)), id: "apn_late", createTime: new Date(0) };
  vault.hooks.before = async (method) => {
    if (method !== "destroyCredentials") return;
    delete vault.hooks.before;
    await db.insertInto("accounts").values(late).execute();
  };
  const receipts = await revokeAll(acme.token);
  expect(receipts).toHaveLength(11);
  expect(receipts.at(-1)).toMatchObject({ totalSize: 11, receipt: { accountId: "apn_late" } });
});

const accountRow = (projectId: string) =>
  db.selectFrom("accounts").selectAll().where("projectId", "=", projectId).limit(1).executeTakeFirstOrThrow();

test("ends well when two revoke the same at once", async () => {
  const acme = await newProject(account);
  const ids = await insertAccounts(account, acme.projectId, 300);
  const [one, two] = await Promise.all([revokeAll(acme.token), revokeAll(acme.token)]);
  const receipts = new Set([...one, ...two].map(({ receipt }) => receipt?.accountId));
  expect([...receipts].sort()).toEqual([...ids].sort());
  expect(await states(acme.projectId)).toEqual(["REVOKED"]);
});

test("only says what it would revoke in a dry run", async () => {
  const acme = await newProject(account);
  const ids = await insertAccounts(account, acme.projectId, 210);
  const calls = vault.calls.length;
  const rehearsal = await revokeAll(acme.token, everything, { dryRun: true });
  expect(rehearsal.map(({ receipt }) => receipt?.accountId)).toEqual([...ids].sort());
  expect(rehearsal[0]).toMatchObject({
    totalSize: 210,
    receipt: { destroyTime: undefined, providerRevocation: ProviderRevocation.UNSPECIFIED, externalUserId: "ann" },
  });
  expect(vault.calls).toHaveLength(calls);
  expect(await listed(acme.token)).toBe(210);
});

test("gives a receipt for an account whose credential the vault does not have", async () => {
  const acme = await newProject(account);
  const { id } = await newKeyAccount(account, acme.token);
  const original = vault.destroyed;
  vault.answers.destroyCredentials = async () => ({ receipts: [] });
  try {
    const [only] = await revokeAll(acme.token);
    expect(only?.receipt).toMatchObject({
      accountId: id,
      externalUserId: "ann",
      appSlug: "sandbox_header_key",
      providerRevocation: ProviderRevocation.NOT_APPLICABLE,
    });
    expect(only?.receipt?.destroyTime).toBeInstanceOf(Date);
    expect(original.has(id)).toBe(false);
  } finally {
    vault.restore();
  }
});

test("refuses to revoke without a target, in another project, without the scope, and with an ended token", async () => {
  const acme = await newProject(account);
  const ids = await insertAccounts(account, acme.projectId, 2);
  const none = collect(api.revokeAllAccounts({ environment: development }, call(acme.token)));
  await expect(none).rejects.toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field: "target" }] });
  const half = revokeAll(acme.token, { $case: "wholeEnvironment", value: false });
  await expect(half).rejects.toMatchObject({ violations: [{ field: "whole_environment" }] });
  const foreign = revokeAll((await newProject(account)).token, everything, { projectId: acme.projectId });
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND" });
  const reader = await newProject(account, ["connect:accounts:read"]);
  await expect(revokeAll(reader.token)).rejects.toMatchObject({ reason: "SCOPE_MISSING" });
  clock.aheadMs = 3_600_001;
  await expect(revokeAll(acme.token)).rejects.toMatchObject({ reason: "TOKEN_EXPIRED" });
  clock.aheadMs = 0;
  expect(await listed(acme.token)).toBe(ids.length);
  const byOperator = operator.revokeAllAccounts(
    { projectId: acme.projectId, environment: development, target: everything },
    call(),
  );
  expect(await collect(byOperator)).toHaveLength(2);
});

test("tells each revocation once, in the audit and as an event, by whichever call ended it", async () => {
  const acme = await newProject(account);
  const ids = await insertAccounts(account, acme.projectId, 450);
  const told = async () => {
    const events = await db
      .selectFrom("events")
      .selectAll()
      .where("projectId", "=", acme.projectId)
      .orderBy("sequence")
      .execute();
    const entries = await db
      .selectFrom("auditEntries")
      .selectAll()
      .where("projectId", "=", acme.projectId)
      .orderBy("createTime")
      .execute();
    const revoked = events.filter(({ type }) => type === "account.revoked");
    const actions = entries.filter(({ action }) => ["RevokeAllAccounts", "DeleteAccount"].includes(action));
    return { revoked, actions };
  };
  let batches = 0;
  vault.hooks.before = async (method) => {
    if (method === "destroyCredentials" && ++batches === 2) vault.failNext("destroyCredentials");
  };
  await expect(revokeAll(acme.token)).rejects.toMatchObject({ code: "UNAVAILABLE" });
  delete vault.hooks.before;
  expect((await told()).revoked).toHaveLength(400);
  await revokeAll(acme.token);
  await revokeAll(acme.token, everything, { includeRevoked: true });
  await api.deleteAccount({ environment: development, accountId: ids[0] ?? "" }, call(acme.token));
  const { revoked, actions } = await told();
  expect(revoked.map(({ accountId }) => accountId).sort()).toEqual([...ids].sort());
  expect(actions.map(({ resourceId }) => resourceId).sort()).toEqual([...ids].sort());
  expect(revoked[0]).toMatchObject({
    environment: development,
    externalUserId: "ann",
    data: { providerRevocation: "PENDING", revokeTime: expect.any(String), destroyTime: expect.any(String) },
  });
  expect(actions[0]).toMatchObject({
    action: "RevokeAllAccounts",
    actor: acme.clientId,
    before: { state: "ACTIVE", externalUserId: "ann" },
    after: { state: "REVOKED" },
  });
});

test("ends no revocation that it could not tell of", async () => {
  const acme = await newProject(account);
  const { id } = await newKeyAccount(account, acme.token);
  const remove = () => api.deleteAccount({ environment: development, accountId: id }, call(acme.token));
  await account.owner.query("alter table events add constraint broken check (type <> 'account.revoked') not valid");
  await expect(remove()).rejects.toMatchObject({ code: "INTERNAL" });
  await account.owner.query("alter table events drop constraint broken");
  expect(await states(acme.projectId)).toEqual(["REVOKING"]);
  await remove();
  expect(await states(acme.projectId)).toEqual(["REVOKED"]);
});

test("gives a repeat the receipts of before when it asks for them, each once", async () => {
  const acme = await newProject(account);
  const ids = await insertAccounts(account, acme.projectId, 430);
  await insertAccounts(account, (await newProject(account)).projectId, 3);
  const first = await revokeAll(acme.token, { $case: "appSlug", value: "sandbox_query_key" });
  expect(first).toHaveLength(215);
  const all = await revokeAll(acme.token, everything, { includeRevoked: true });
  expect(all.map(({ receipt }) => receipt?.accountId).sort()).toEqual([...ids].sort());
  expect(all.every(({ totalSize, receipt }) => totalSize === 430 && receipt?.jws !== "")).toBe(true);
  const ofBob = await revokeAll(acme.token, { $case: "externalUserId", value: "bob" }, { includeRevoked: true });
  expect(ofBob).toEqual([]);
  const dry = revokeAll(acme.token, everything, { dryRun: true, includeRevoked: true });
  await expect(dry).rejects.toMatchObject({ violations: [{ field: "include_revoked" }] });
});
