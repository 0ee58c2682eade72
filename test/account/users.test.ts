// External users: listed with the number of their accounts, and limited in the development environment.
import type { KyselyPlugin } from "kysely";
import { expect, test } from "vitest";
import { newId } from "#libs/ids.ts";
import { ensureUser, listUsers } from "../../services/account/external-users.ts";
import {
  call,
  development,
  insertAccounts,
  newConnectToken,
  newKeyAccount,
  newProject,
  production,
  startAccount,
} from "./harness.ts";

const limit = 10;
const account = await startAccount(undefined, [], { developmentUsers: limit });
const { api, db } = account;

const connect = (token: string, externalUserId: string, more = {}) =>
  newConnectToken(account, token, { externalUserId, ...more });
const namesOf = (users: readonly { externalUserId: string }[]) => users.map(({ externalUserId }) => externalUserId);
/** Repeats what the database had no connection for, as it says: on a busy machine they wait longer than they may. */
async function persist(token: string, externalUserId: string): Promise<string> {
  try {
    return await connect(token, externalUserId);
  } catch (error) {
    if ((error as { code?: unknown }).code !== "UNAVAILABLE") throw error;
    return persist(token, externalUserId);
  }
}

test("lists users in pages in the order in which they were first named, with their accounts", async () => {
  const { token } = await newProject(account);
  for (const user of ["ann", "bob", "cem"]) await connect(token, user);
  await newKeyAccount(account, token, "bob");
  const { id } = await newKeyAccount(account, token, "bob");
  await newKeyAccount(account, token, "bob");
  await api.deleteAccount({ environment: development, accountId: id }, call(token));
  const list = (more = {}) => api.listUsers({ environment: development, pageSize: 2, ...more }, call(token));
  const first = await list();
  expect(first.users).toMatchObject([
    { id: expect.stringMatching(/^exu_\w{22}$/), externalUserId: "ann", accountCount: 0 },
    { externalUserId: "bob", accountCount: 2 },
  ]);
  expect(first.totalSize).toBe(3);
  const second = await list({ pageToken: first.nextPageToken });
  expect([namesOf(second.users), second.nextPageToken]).toEqual([["cem"], ""]);
});

test("finds users by a part of their id, as a text and not as a pattern", async () => {
  const { token } = await newProject(account);
  for (const user of ["User-1", "user_2", "other"]) await connect(token, user);
  const find = async (query: string) =>
    namesOf((await api.listUsers({ environment: development, query }, call(token))).users);
  expect(await find("SER")).toEqual(["User-1", "user_2"]);
  expect(await find("r_2")).toEqual(["user_2"]);
  expect(await find("r%")).toEqual([]);
});

test("keeps projects and environments apart, and users' browsers out", async () => {
  const acme = await newProject(account);
  const other = await newProject(account);
  const connectToken = await connect(acme.token, "ann");
  await connect(acme.token, "ann", { environment: production });
  await connect(acme.token, "bob", { environment: production });
  await newKeyAccount(account, acme.token, "ann");
  const list = (token: string, more: object) => api.listUsers({ environment: development, ...more }, call(token));
  const inProduction = await list(acme.token, { environment: production });
  expect(inProduction.users).toMatchObject([
    { externalUserId: "ann", accountCount: 0 },
    { externalUserId: "bob", accountCount: 0 },
  ]);
  expect((await list(acme.token, {})).users).toMatchObject([{ externalUserId: "ann", accountCount: 1 }]);
  expect((await list(other.token, {})).users).toEqual([]);
  const foreign = list(other.token, { projectId: acme.projectId });
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such project." });
  await expect(list(connectToken, {})).rejects.toMatchObject({ reason: "CONNECT_TOKEN_NOT_ALLOWED" });
  const narrow = await newProject(account, ["connect:accounts:read"]);
  await expect(list(narrow.token, {})).rejects.toMatchObject({ reason: "SCOPE_MISSING" });
});

test("asks the database as often for a thousand users as for one", async () => {
  const { projectId } = await newProject(account);
  let statements = 0;
  const counting: KyselyPlugin = {
    transformQuery: ({ node }) => {
      statements += 1;
      return node;
    },
    transformResult: async ({ result }) => result,
  };
  const ask = async () => {
    statements = 0;
    const filter = { projectId, environment: production, query: "" };
    const { rows } = await listUsers(db.withPlugin(counting), filter, { size: 1000, after: undefined });
    return { users: rows.length, accounts: rows.reduce((sum, row) => sum + row.accountCount, 0), statements };
  };
  const insert = (first: number, count: number) => {
    const rows = Array.from({ length: count }, (_, n) => {
      const id = newId("exu");
      return {
        projectId,
        environment: production as 2,
        externalUserId: `user-${first + n}`,
        id,
        createTime: new Date(),
      };
    });
    return db.insertInto("externalUsers").values(rows).execute();
  };
  await insert(0, 1);
  expect(await ask()).toEqual({ users: 1, accounts: 0, statements: 2 });
  await insert(1, 999);
  await insertAccounts(account, projectId, 7, "user-500");
  await db.updateTable("accounts").set({ environment: production }).where("projectId", "=", projectId).execute();
  expect(await ask()).toEqual({ users: 1000, accounts: 7, statements: 2 });
});

test("takes no more users than allowed in development, however many come at once", async () => {
  const { token } = await newProject(account);
  const other = await newProject(account);
  const attempts = await Promise.allSettled(Array.from({ length: 20 }, (_, n) => persist(token, `user-${n}`)));
  const refused = attempts.flatMap((attempt) => (attempt.status === "rejected" ? [attempt.reason] : []));
  expect(refused).toHaveLength(20 - limit);
  for (const reason of refused) {
    expect(reason).toMatchObject({
      code: "FAILED_PRECONDITION",
      reason: "USER_LIMIT_REACHED",
      metadata: { limit: "10" },
      message: expect.stringMatching(
        /^You've hit your limit on the number of external users you can connect\. .*10.*delete.*production.*DEPUTY_DEV/,
      ),
    });
  }
  const { users, totalSize } = await api.listUsers({ environment: development }, call(token));
  expect(totalSize).toBe(limit);
  // Those who are in stay in, with tokens and accounts; there is no other way in; other places have room of their own.
  await connect(token, users[0]?.externalUserId ?? "");
  await newKeyAccount(account, token, users[1]?.externalUserId);
  await expect(newKeyAccount(account, token, "one-more")).rejects.toMatchObject({ reason: "USER_LIMIT_REACHED" });
  await connect(token, "one-more", { environment: production });
  await connect(other.token, "one-more");
  expect((await api.listUsers({ environment: development }, call(token))).totalSize).toBe(limit);
});

test("makes one user when the last place is asked for twice by the same", async () => {
  const { token, projectId } = await newProject(account);
  for (let n = 1; n < limit; n += 1) await connect(token, `user-${n}`);
  await Promise.all(Array.from({ length: 8 }, () => connect(token, "last")));
  const rows = await db.selectFrom("externalUsers").select("id").where("projectId", "=", projectId).execute();
  expect(rows).toHaveLength(limit);
});

test("counts inside a transaction of the caller's too, and knows no limit where there is none", async () => {
  const { projectId } = await newProject(account);
  const user = (n: number) => ({ projectId, environment: development, externalUserId: `user-${n}` }) as const;
  const full = db.transaction().execute(async (tx) => {
    for (let n = 0; n <= 2; n += 1) await ensureUser(tx, user(n), new Date(), 2);
  });
  await expect(full).rejects.toMatchObject({ reason: "USER_LIMIT_REACHED" });
  expect(await db.selectFrom("externalUsers").select("id").where("projectId", "=", projectId).execute()).toEqual([]);
  for (let n = 0; n < limit + 5; n += 1) await ensureUser(db, user(n), new Date(), 0);
  const rows = await db.selectFrom("externalUsers").select("id").where("projectId", "=", projectId).execute();
  expect(rows).toHaveLength(limit + 5);
});
