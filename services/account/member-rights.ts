// What a member of the workspace may do with an account: the matrix, once, as data. A caller who acts for no member is the
// project itself and may do everything. Whoever is listed by an account that is shared with some members counts as somebody it
// is shared with; whoever is not, as somebody it is not.
//
//   operation             owner   private: admins   private: others   shared: admins   shared: others
//   view                  yes     yes               no                yes              yes
//   use in something new  yes     no                no                yes              yes
//   change a use          yes     no                no                yes              yes
//   test a use            yes     yes               yes               yes              yes
//   manage                yes     yes               no                yes              no
//
// Admins are the workspace's owners and admins. To manage is to change name, owner and sharing, to reconnect, and to delete.
// A member who may not even see an account is told what is told of one that is not there.
import { type Expression, type SqlBool, sql } from "kysely";
import { isAdministrator, type TokenIdentity } from "#libs/callers.ts";
import { notFound, StatusError } from "#libs/errors.ts";
import type { AccountRow } from "./schema.ts";

/** A member on whose behalf a caller acts; undefined: the project itself. */
export type Actor = TokenIdentity["actor"];

/** What is done with an account. */
export type AccountOperation = "view" | "use" | "change_use" | "test_use" | "manage";

/** Who wants to do what. */
export interface Right {
  readonly actor: Actor;
  readonly operation: AccountOperation;
}

/** Whose an account is. */
export type Shared = Pick<AccountRow, "ownerMemberId" | "sharing" | "sharedMemberIds">;

const everything: readonly AccountOperation[] = ["view", "use", "change_use", "test_use", "manage"];

const matrix: Readonly<Record<string, readonly AccountOperation[]>> = {
  owner: everything,
  privateToAdmin: ["view", "test_use", "manage"],
  privateToOther: ["test_use"],
  sharedWithAdmin: everything,
  sharedWithOther: ["view", "use", "change_use", "test_use"],
};

/** Whether a member may do something with an account. */
export function isAllowed({ actor, operation }: Right, account: Shared): boolean {
  return actor === undefined || (matrix[relationOf(actor, account)] ?? []).includes(operation);
}

/** Throws NOT_FOUND for an account that the member may not see, PERMISSION_DENIED `MEMBER_NOT_ALLOWED` for one that it may. */
export function requireRight(right: Right, account: Shared): void {
  if (isAllowed(right, account)) return;
  if (!isAllowed({ ...right, operation: "view" }, account)) throw notFound("account");
  const { operation } = right;
  const message = `This member may not ${texts[operation]}.`;
  throw new StatusError("PERMISSION_DENIED", "MEMBER_NOT_ALLOWED", message, { metadata: { operation } });
}

/** The same as `isAllowed` as a condition of a query over accounts, for what lists and revocations ask for. */
export function allowedRows({ actor, operation }: Right & { operation: "view" | "manage" }): Expression<SqlBool> {
  if (actor === undefined || isAdministrator(actor)) return sql`true`;
  const { memberId } = actor;
  const isOwner = sql<SqlBool>`(owner_member_id <> '' and owner_member_id = ${memberId})`;
  if (operation === "manage") return isOwner;
  const isListed = sql<SqlBool>`(sharing = 'MEMBERS' and ${memberId} = any(shared_member_ids))`;
  return sql`(${isOwner} or sharing = 'WORKSPACE' or ${isListed})`;
}

function relationOf(actor: NonNullable<Actor>, { ownerMemberId, sharing, sharedMemberIds }: Shared): string {
  if (ownerMemberId !== "" && ownerMemberId === actor.memberId) return "owner";
  const isShared = sharing === "WORKSPACE" || (sharing === "MEMBERS" && sharedMemberIds.includes(actor.memberId));
  return `${isShared ? "sharedWith" : "privateTo"}${isAdministrator(actor) ? "Admin" : "Other"}`;
}

const texts: Readonly<Record<AccountOperation, string>> = {
  view: "see this account",
  use: "use this account in something new",
  change_use: "change what uses this account",
  test_use: "test what uses this account",
  manage: "manage this account",
};
