// Owners, sharing and members over the RPCs: the matrix itself is in member-rights.test.ts.
import { describe, expect, test } from "vitest";
import { AccountSharing, AccountState, AccountUse } from "#proto/deputy/account/v1/accounts.ts";
import {
  binding,
  call,
  collect,
  development,
  insertAccounts,
  issue,
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
const { api, gateway, proxy, db, owner, vault } = account;

const absent = { code: "NOT_FOUND", message: "No such account." };
const denied = (operation: string) => ({
  code: "PERMISSION_DENIED",
  reason: "MEMBER_NOT_ALLOWED",
  metadata: { operation },
});
const auditOf = (projectId: string, action: string) =>
  db
    .selectFrom("auditEntries")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("action", "=", action)
    .orderBy("createTime")
    .execute();

/** A project in which mia has connected an account. */
async function startWorkspace() {
  const acme = await newProject(account);
  const as = (memberId: string, role = "member") => memberToken(account, acme.projectId, memberId, { role });
  const mia = await as("mia");
  const made = await newKeyAccount(account, mia);
  const update = (token: string, change: Partial<Parameters<typeof api.updateAccount>[0]>) =>
    api.updateAccount({ environment: development, accountId: made.id, ...change }, call(token));
  const get = (token: string, more = {}) =>
    api.getAccount({ environment: development, accountId: made.id, ...more }, call(token));
  return { ...acme, as, mia, bob: await as("bob"), ada: await as("ada", "admin"), made, update, get };
}

describe("an owner", () => {
  test("is the member who connects an account, which is private then; without a member there is none", async () => {
    const { made, token } = await startWorkspace();
    expect(made).toMatchObject({ ownerMemberId: "mia", sharing: AccountSharing.PRIVATE, sharedMemberIds: [] });
    const ofProject = await newKeyAccount(account, token);
    expect(ofProject).toMatchObject({ ownerMemberId: "", sharing: AccountSharing.WORKSPACE });
  });

  test("is the member for whom a connect token was made, whoever uses it", async () => {
    const { projectId, mia, token } = await startWorkspace();
    const created = await newKeyAccount(account, await newConnectToken(account, mia));
    expect(created).toMatchObject({ ownerMemberId: "mia", sharing: AccountSharing.PRIVATE });
    await newOauthApp(account, projectId);
    const link = await newConnectToken(account, mia);
    const started = await api.startConnection({ appSlug: "sandbox", browserBinding: binding }, call(link));
    const state = new URL(started.authorizationUrl).searchParams.get("state") ?? "";
    const { connection } = await gateway.completeConnection({ state, code: "c", browserBinding: binding }, call());
    const accountId = connection?.accountId ?? "";
    const { account: connected } = await api.getAccount({ environment: development, accountId }, call(token));
    expect(connected).toMatchObject({ ownerMemberId: "mia", sharing: AccountSharing.PRIVATE });
  });

  test("of a connect token's maker binds its bearer too, also over an access token", async () => {
    const { get, bob, mia, update } = await startWorkspace();
    const link = await newConnectToken(account, bob);
    const grant = { $case: "connectToken", value: link } as const;
    const { accessToken } = await api.issueAccessToken({ grant }, call());
    for (const token of [link, accessToken]) await expect(get(token)).rejects.toMatchObject(absent);
    await update(mia, { sharing: AccountSharing.WORKSPACE });
    for (const token of [link, accessToken]) expect((await get(token)).account?.ownerMemberId).toBe("mia");
    const own = await newConnectToken(account, mia);
    expect((await get(own)).account?.ownerMemberId).toBe("mia");
  });

  test("gives an account away, and is then somebody like others", async () => {
    const { update, mia, bob, get } = await startWorkspace();
    const { account: given } = await update(mia, { ownerMemberId: "bob" });
    expect(given).toMatchObject({ ownerMemberId: "bob", sharing: AccountSharing.PRIVATE });
    await expect(get(mia)).rejects.toMatchObject(absent);
    await update(bob, { ownerMemberId: "", sharing: AccountSharing.UNSPECIFIED });
    expect((await get(mia)).account).toMatchObject({ ownerMemberId: "", sharing: AccountSharing.WORKSPACE });
    await expect(update(bob, { name: "mine again" })).rejects.toMatchObject(denied("manage"));
  });
});

describe("UpdateAccount", () => {
  test("changes what is given, leaves the rest, and tells it in the audit", async () => {
    const { update, token, projectId, made, mia } = await startWorkspace();
    const { account: named } = await update(mia, { name: "Support" });
    expect(named).toMatchObject({ name: "Support", ownerMemberId: "mia", sharing: AccountSharing.PRIVATE });
    const { account: shared } = await update(token, {
      sharing: AccountSharing.MEMBERS,
      sharedMemberIds: ["bob", "cid"],
    });
    expect(shared).toMatchObject({ name: "Support", sharing: AccountSharing.MEMBERS, sharedMemberIds: ["bob", "cid"] });
    const { account: renamed } = await update(token, { name: "" });
    expect(renamed).toMatchObject({ name: "", sharing: AccountSharing.MEMBERS, sharedMemberIds: ["bob", "cid"] });
    await update(token, { sharing: AccountSharing.PRIVATE });
    const entries = await auditOf(projectId, "UpdateAccount");
    expect(entries.map(({ resourceId }) => resourceId)).toEqual([made.id, made.id, made.id, made.id]);
    expect(entries.find(({ actor }) => actor === "member:mia")).toMatchObject({
      before: { name: "", sharing: "PRIVATE" },
      after: { name: "Support", sharing: "PRIVATE" },
    });
    await update(token, { sharing: AccountSharing.PRIVATE, ownerMemberId: "mia" });
    expect(await auditOf(projectId, "UpdateAccount")).toHaveLength(4);
  });

  test("refuses a list that goes with no sharing, and the other way round, naming the field", async () => {
    const { update, mia } = await startWorkspace();
    const faulty = { code: "INVALID_ARGUMENT", violations: [{ field: "shared_member_ids" }] };
    await expect(update(mia, { sharing: AccountSharing.MEMBERS })).rejects.toMatchObject(faulty);
    await expect(update(mia, { sharedMemberIds: ["bob"] })).rejects.toMatchObject(faulty);
    const both = update(mia, { sharing: AccountSharing.WORKSPACE, sharedMemberIds: ["bob"] });
    await expect(both).rejects.toMatchObject(faulty);
    const twice = update(mia, { sharing: AccountSharing.MEMBERS, sharedMemberIds: ["bob", "bob"] });
    await expect(twice).rejects.toMatchObject(faulty);
    const empty = update(mia, { sharing: AccountSharing.MEMBERS, sharedMemberIds: [""] });
    await expect(empty).rejects.toMatchObject({ violations: [{ field: "shared_member_ids" }] });
  });

  test("is for no other project, environment or user, no connect token, no lesser scope, and no revoked account", async () => {
    const { update, mia, token, projectId, made } = await startWorkspace();
    await expect(update((await newProject(account)).token, { name: "x" })).rejects.toMatchObject(absent);
    await expect(update(token, { name: "x", environment: production })).rejects.toMatchObject(absent);
    await expect(update(token, { name: "x", externalUserId: "bob" })).rejects.toMatchObject(absent);
    const link = await newConnectToken(account, token);
    await expect(update(link, { name: "x" })).rejects.toMatchObject({ reason: "CONNECT_TOKEN_NOT_ALLOWED" });
    const reader = await memberToken(account, projectId, "mia", { scope: "connect:accounts:read" });
    await expect(update(reader, { name: "x" })).rejects.toMatchObject({ reason: "SCOPE_MISSING" });
    await api.deleteAccount({ environment: development, accountId: made.id }, call(mia));
    await expect(update(token, { name: "x" })).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
    expect(await auditOf(projectId, "UpdateAccount")).toEqual([]);
  });

  test("lets a change that comes second judge what the first has left", async () => {
    const { update, mia, made, get, token } = await startWorkspace();
    await owner.query("begin");
    await owner.query("update accounts set owner_member_id = 'bob' where id = $1", [made.id]);
    const late = update(mia, { name: "too late" });
    await new Promise((resolve) => setTimeout(resolve, 200));
    await owner.query("commit");
    await expect(late).rejects.toMatchObject(absent);
    expect((await get(token)).account?.name).toBe("");
  });
});

describe("a member", () => {
  test("who may not see an account is told there is none, whatever is asked", async () => {
    const { get, update, bob, made, projectId } = await startWorkspace();
    await expect(get(bob)).rejects.toMatchObject(absent);
    await expect(get(bob, { use: AccountUse.TEST })).rejects.toMatchObject(absent);
    await expect(update(bob, { name: "mine" })).rejects.toMatchObject(absent);
    const gone = api.deleteAccount({ environment: development, accountId: made.id }, call(bob));
    await expect(gone).rejects.toMatchObject(absent);
    const reconnect = { environment: development, externalUserId: "ann", appSlug: "sandbox_header_key" } as const;
    const again = api.createAccount({ ...reconnect, accountId: made.id, credential: keyFields }, call(bob));
    await expect(again).rejects.toMatchObject(absent);
    const link = await newConnectToken(account, bob, { appSlug: "sandbox_header_key" });
    const valid = await api.validateConnectToken({ connectToken: link, accountId: made.id }, call());
    expect(valid).toMatchObject({ valid: false, error: "No such account." });
    expect(vault.callsOf("storeCredential").filter(({ request }) => hasAccount(request, made.id))).toHaveLength(1);
    expect(await auditOf(projectId, "DeleteAccount")).toEqual([]);
  });

  test("with whom an account is shared uses it, and neither changes, reconnects nor deletes it", async () => {
    const { get, update, bob, mia, made } = await startWorkspace();
    await update(mia, { sharing: AccountSharing.MEMBERS, sharedMemberIds: ["bob"] });
    expect((await get(bob, { use: AccountUse.NEW })).account?.id).toBe(made.id);
    await expect(update(bob, { sharing: AccountSharing.PRIVATE })).rejects.toMatchObject(denied("manage"));
    const gone = api.deleteAccount({ environment: development, accountId: made.id }, call(bob));
    await expect(gone).rejects.toMatchObject(denied("manage"));
    const reconnect = { environment: development, externalUserId: "ann", appSlug: "sandbox_header_key" } as const;
    const again = api.createAccount({ ...reconnect, accountId: made.id, credential: keyFields }, call(bob));
    await expect(again).rejects.toMatchObject(denied("manage"));
    expect((await get(mia)).account?.sharing).toBe(AccountSharing.MEMBERS);
  });

  test("who is an admin manages a private account without using it", async () => {
    const { get, update, ada, made, mia } = await startWorkspace();
    expect((await get(ada)).account?.id).toBe(made.id);
    await expect(get(ada, { use: AccountUse.NEW })).rejects.toMatchObject(denied("use"));
    await expect(get(ada, { use: AccountUse.CHANGE })).rejects.toMatchObject(denied("change_use"));
    expect((await get(ada, { use: AccountUse.TEST })).account?.id).toBe(made.id);
    await update(ada, { sharing: AccountSharing.WORKSPACE });
    await api.deleteAccount({ environment: development, accountId: made.id }, call(ada));
    await expect(get(mia)).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  });

  test("is asked by a proxy for a use alone: a test needs no sight of the account", async () => {
    const { bob, ada, mia, token, made } = await startWorkspace();
    const use = (as: string, asked?: AccountUse) =>
      proxy.getAccount({ environment: development, accountId: made.id, ...(asked && { use: asked }) }, call(as));
    expect((await use(bob, AccountUse.TEST)).account?.id).toBe(made.id);
    await expect(use(bob, AccountUse.NEW)).rejects.toMatchObject(absent);
    await expect(use(bob, AccountUse.CHANGE)).rejects.toMatchObject(absent);
    await expect(use(bob)).rejects.toMatchObject(absent);
    await expect(use(ada)).rejects.toMatchObject(denied("use"));
    for (const as of [mia, token]) expect((await use(as)).account?.id).toBe(made.id);
    const unknown = proxy.getAccount({ environment: development, accountId: made.id, use: 9 as 0 }, call(mia));
    await expect(unknown).rejects.toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field: "use" }] });
  });
});

describe("ListAccounts", () => {
  test("pages over what the member may see, and counts nothing else", async () => {
    const { projectId, as, token } = await startWorkspace();
    const ids = await insertAccounts(account, projectId, 60);
    const everyThird = ids.filter((_, index) => index % 3 === 0).sort();
    await db
      .updateTable("accounts")
      .set({ ownerMemberId: "zoe", sharing: "PRIVATE" })
      .where("projectId", "=", projectId)
      .execute();
    await db.updateTable("accounts").set({ ownerMemberId: "pia" }).where("id", "in", everyThird).execute();
    const walk = async (as: string) => {
      const seen: string[] = [];
      let [pageToken, totalSize] = ["", 0];
      do {
        const page = await api.listAccounts({ environment: development, pageSize: 7, pageToken }, call(as));
        expect(page.accounts.length === 7 || page.nextPageToken === "").toBe(true);
        seen.push(...page.accounts.map(({ id }) => id));
        ({ nextPageToken: pageToken, totalSize } = page);
      } while (pageToken !== "");
      expect(totalSize).toBe(seen.length);
      return seen.sort();
    };
    expect(await walk(await as("pia"))).toEqual(everyThird);
    expect(await walk(await as("nobody"))).toEqual([]);
    expect(await walk(await as("boss", "owner"))).toHaveLength(61);
    expect(await walk(token)).toHaveLength(61);
  });

  test("gives tombstones when asked for them, and no usable account then", async () => {
    const { token, made, mia, bob } = await startWorkspace();
    const kept = await newKeyAccount(account, token);
    await api.deleteAccount({ environment: development, accountId: made.id }, call(mia));
    const list = async (as: string, state: AccountState) =>
      (await api.listAccounts({ environment: development, state }, call(as))).accounts.map(({ id }) => id);
    expect(await list(token, AccountState.REVOKED)).toEqual([made.id]);
    expect(await list(bob, AccountState.REVOKED)).toEqual([]);
    for (const state of [AccountState.UNSPECIFIED, AccountState.ACTIVE])
      expect(await list(token, state)).toEqual([kept.id]);
    expect(await list(token, AccountState.REVOKING)).toEqual([]);
  });
});

test("revokes, for a member, what that member may delete and nothing else", async () => {
  const { as, token, made, projectId, bob } = await startWorkspace();
  const ofProject = await newKeyAccount(account, token);
  const ofBob = await newKeyAccount(account, bob);
  const target = { $case: "externalUserId", value: "ann" } as const;
  const revoke = async (by: string, more = {}) => {
    const receipts = await collect(api.revokeAllAccounts({ environment: development, target, ...more }, call(by)));
    return receipts.map(({ receipt, totalSize }) => [receipt?.accountId, totalSize]);
  };
  expect(await revoke(bob, { dryRun: true })).toEqual([[ofBob.id, 1]]);
  expect(await revoke(bob)).toEqual([[ofBob.id, 1]]);
  expect(await revoke(await as("nobody"))).toEqual([]);
  const rest = await revoke(await as("boss", "owner"));
  expect(rest.map(([id]) => id).sort()).toEqual([made.id, ofProject.id].sort());
  const entries = await auditOf(projectId, "RevokeAllAccounts");
  expect(Object.fromEntries(entries.map(({ resourceId, actor }) => [resourceId, actor]))).toEqual({
    [ofBob.id]: "member:bob",
    [made.id]: "member:boss",
    [ofProject.id]: "member:boss",
  });
});

test("leaves a token of the project itself its full right", async () => {
  const { clientId, clientSecret, update, get } = await startWorkspace();
  const token = await issue(api, clientId, clientSecret);
  expect((await get(token)).account?.ownerMemberId).toBe("mia");
  await update(token, { ownerMemberId: "bob" });
  expect((await get(token, { use: AccountUse.NEW })).account?.ownerMemberId).toBe("bob");
});

function hasAccount(request: object, accountId: string): boolean {
  return "accountId" in request && request.accountId === accountId;
}
