// The matrix of members' rights, cell by cell, and its twin in SQL, which has to say the same.
import { describe, expect, test } from "vitest";
import {
  type AccountOperation,
  type Actor,
  allowedRows,
  isAllowed,
  requireRight,
  type Shared,
} from "../../services/account/member-rights.ts";
import { insertAccounts, newProject, startAccount } from "./harness.ts";

const privateAccount: Shared = { ownerMemberId: "mia", sharing: "PRIVATE", sharedMemberIds: [] };
const workspaceAccount: Shared = { ownerMemberId: "mia", sharing: "WORKSPACE", sharedMemberIds: [] };
const membersAccount: Shared = { ownerMemberId: "mia", sharing: "MEMBERS", sharedMemberIds: ["bob", "ada"] };
const ownerless: Shared = { ownerMemberId: "", sharing: "WORKSPACE", sharedMemberIds: [] };
const ownerlessPrivate: Shared = { ownerMemberId: "", sharing: "PRIVATE", sharedMemberIds: [] };

const mia: Actor = { memberId: "mia", role: "member" };
const bob: Actor = { memberId: "bob", role: "member" };
const eve: Actor = { memberId: "eve", role: "member" };
const ada: Actor = { memberId: "ada", role: "admin" };
const odd: Actor = { memberId: "odd", role: "owner" };
const none: Actor = undefined;

const operations = ["view", "use", "change_use", "test_use", "manage"] as const;

// Who, to which account: view, use in something new, change a use, test a use, manage.
const cells: readonly (readonly [string, Actor, Shared, string])[] = [
  ["the owner of a private account", mia, privateAccount, "yes yes yes yes yes"],
  ["the owner of an account that is shared", mia, workspaceAccount, "yes yes yes yes yes"],
  ["the owner of an account that is shared with others", mia, membersAccount, "yes yes yes yes yes"],
  ["an admin, to a private account", ada, privateAccount, "yes no no yes yes"],
  ["a workspace owner, to a private account", odd, privateAccount, "yes no no yes yes"],
  ["another, to a private account", bob, privateAccount, "no no no yes no"],
  ["an admin, to an account of the workspace", ada, workspaceAccount, "yes yes yes yes yes"],
  ["a workspace owner, to an account of the workspace", odd, workspaceAccount, "yes yes yes yes yes"],
  ["another, to an account of the workspace", bob, workspaceAccount, "yes yes yes yes no"],
  ["a member who is listed", bob, membersAccount, "yes yes yes yes no"],
  ["an admin who is listed", ada, membersAccount, "yes yes yes yes yes"],
  ["a member who is not listed", eve, membersAccount, "no no no yes no"],
  ["a workspace owner who is not listed", odd, membersAccount, "yes no no yes yes"],
  ["a member, to an account without an owner", bob, ownerless, "yes yes yes yes no"],
  ["an admin, to an account without an owner", ada, ownerless, "yes yes yes yes yes"],
  ["a member, to a private account without an owner", bob, ownerlessPrivate, "no no no yes no"],
  [
    "a member without an id, to an account without an owner",
    { memberId: "", role: "member" },
    ownerless,
    "yes yes yes yes no",
  ],
  ["a member of an unknown role", { memberId: "eve", role: "boss" }, privateAccount, "no no no yes no"],
  ["an admin, in capitals", { memberId: "ada", role: "ADMIN" }, privateAccount, "yes no no yes yes"],
  ["the project itself, to a private account", none, privateAccount, "yes yes yes yes yes"],
  ["the project itself, to a listed account", none, membersAccount, "yes yes yes yes yes"],
];

describe.each(cells)("%s", (_who, actor, account, expected) => {
  test.each(expected.split(" ").map((word, index) => [word, operations[index] as AccountOperation] as const))(
    "%s: %s",
    (word, operation) => {
      expect(isAllowed({ actor, operation }, account)).toBe(word === "yes");
    },
  );
});

test("tells who may not see an account that there is none, and who may what is not allowed", () => {
  const refusal = (actor: Actor, operation: AccountOperation) => {
    try {
      requireRight({ actor, operation }, privateAccount);
    } catch (error) {
      return error;
    }
    return undefined;
  };
  expect(refusal(bob, "manage")).toMatchObject({ code: "NOT_FOUND", message: "No such account." });
  expect(refusal(bob, "view")).toMatchObject({ code: "NOT_FOUND", message: "No such account." });
  expect(refusal(ada, "use")).toMatchObject({
    code: "PERMISSION_DENIED",
    reason: "MEMBER_NOT_ALLOWED",
    message: "This member may not use this account in something new.",
    metadata: { operation: "use" },
  });
  expect(refusal(ada, "manage")).toBeUndefined();
});

test("says the same in a query as by itself", async () => {
  const account = await startAccount();
  const { projectId } = await newProject(account);
  const kinds = [privateAccount, workspaceAccount, membersAccount, ownerless, ownerlessPrivate];
  const ids = await insertAccounts(account, projectId, kinds.length);
  for (const [index, kind] of kinds.entries()) {
    await account.db
      .updateTable("accounts")
      .set(kind)
      .where("id", "=", ids[index] ?? "")
      .execute();
  }
  for (const actor of [mia, bob, eve, ada, odd, none, { memberId: "", role: "member" }]) {
    for (const operation of ["view", "manage"] as const) {
      const found = await account.db
        .selectFrom("accounts")
        .select("id")
        .where("projectId", "=", projectId)
        .where(allowedRows({ actor, operation }))
        .execute();
      const allowed = ids.filter((_, index) => isAllowed({ actor, operation }, kinds[index] ?? privateAccount));
      expect(found.map(({ id }) => id).sort(), `${actor?.memberId} ${operation}`).toEqual([...allowed].sort());
    }
  }
});
