// Accounts as callers see them, and what people decide about one: its name, its owner, who may use it. GetAccount stands on the
// path of every forwarded request: one read, and no call.
import { invalidField } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import {
  AccountHealth,
  AccountSharing,
  AccountState,
  AccountUse,
  type GetAccountRequest,
  type UpdateAccountRequest,
} from "#proto/deputy/account/v1/accounts.ts";
import {
  accountRevoked,
  defaultSharing,
  getAccount,
  listAccounts,
  lockAccount,
  toldOfAccount,
  updateAccount,
} from "./accounts.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import { type HandlerGroup, toDo } from "./handler-group.ts";
import { type AccountOperation, requireRight, type Shared } from "./member-rights.ts";
import { accountMessage } from "./messages.ts";
import { requestedPage } from "./pages.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

type Methods = "getAccount" | "listAccounts" | "updateAccount";

export function accountHandlers({ db }: { db: AccountDatabase }, now: () => number): HandlerGroup<Methods> {
  return {
    async getAccount(request, call) {
      const [operation, ...others] = operationsOf(request, call);
      const account = await getAccount(db, request, request.accountId, toDo(operation, call));
      for (const other of others) requireRight(toDo(other, call), account);
      return { account: accountMessage(account) };
    },

    async listAccounts(request, call) {
      const { projectId, environment, externalUserId, appSlug, oauthAppId } = request;
      const [health, state] = [healthName(request.health), stateName(request.state)];
      const filter = { projectId, environment, externalUserId, appSlug, oauthAppId, actor: call.caller.token?.actor };
      const more = { ...(health && { health }), ...(state && { state }) };
      const { rows, nextPageToken, totalSize } = await listAccounts(db, { ...filter, ...more }, requestedPage(request));
      return { accounts: rows.map(accountMessage), nextPageToken, totalSize };
    },

    async updateAccount(request, call) {
      const time = new Date(now());
      const account = await db.transaction().execute(async (tx) => {
        await lockAccount(tx, request, request.accountId);
        const before = await getAccount(tx, request, request.accountId, toDo("manage", call));
        const change = changeOf(request, before);
        if (isSame(change, before)) return before;
        const after = await updateAccount(tx, before, change, time);
        if (after === undefined) throw accountRevoked(before.revokeTime ?? time);
        const { projectId, id: resourceId } = after;
        const told = { before: toldOfAccount(before), after: toldOfAccount(after) };
        await insertAuditEntries(tx, call, time, { projectId, resourceId, action: "UpdateAccount", ...told });
        return after;
      });
      return { account: accountMessage(account) };
    },
  };
}

/** What a look at an account is for, in the order in which it is judged. A proxy's is for a use; all others must see it first. */
function operationsOf({ use }: GetAccountRequest, { caller }: Call): [AccountOperation, ...AccountOperation[]] {
  const operation = uses[use];
  if (caller.service === "proxy") return [operation];
  return use === AccountUse.UNSPECIFIED ? ["view"] : ["view", operation];
}

const uses: Readonly<Record<AccountUse, AccountOperation>> = {
  [AccountUse.UNSPECIFIED]: "use",
  [AccountUse.NEW]: "use",
  [AccountUse.CHANGE]: "change_use",
  [AccountUse.TEST]: "test_use",
};

/** The account's name and sharing as they are to be. */
function changeOf(request: UpdateAccountRequest, before: AccountRow): Shared & Pick<AccountRow, "name"> {
  const { name = before.name, ownerMemberId = before.ownerMemberId, sharing, sharedMemberIds } = request;
  const isForMembers = sharing === AccountSharing.MEMBERS;
  if (isForMembers && sharedMemberIds.length === 0) {
    throw invalidField("shared_member_ids", "is required with sharing MEMBERS");
  }
  if (!isForMembers && sharedMemberIds.length > 0) {
    throw invalidField("shared_member_ids", "is for sharing MEMBERS: give both");
  }
  const kept = { sharing: before.sharing, sharedMemberIds: before.sharedMemberIds };
  const given = { sharing: sharingName(sharing) ?? defaultSharing({ ownerMemberId }), sharedMemberIds };
  return { name, ownerMemberId, ...(sharing === undefined ? kept : given) };
}

function isSame(change: Shared & Pick<AccountRow, "name">, before: AccountRow): boolean {
  const text = ({ name, ownerMemberId, sharing, sharedMemberIds }: typeof change) =>
    JSON.stringify([name, ownerMemberId, sharing, sharedMemberIds]);
  return text(change) === text(before);
}

function sharingName(sharing: AccountSharing | undefined): AccountRow["sharing"] | undefined {
  return (["PRIVATE", "WORKSPACE", "MEMBERS"] as const).find((name) => AccountSharing[name] === sharing);
}

function stateName(state: AccountState): AccountRow["state"] | undefined {
  return (["ACTIVE", "REVOKING", "REVOKED"] as const).find((name) => AccountState[name] === state);
}

function healthName(health: AccountHealth): AccountRow["health"] | undefined {
  return (["HEALTHY", "UNHEALTHY", "DEAD"] as const).find((name) => AccountHealth[name] === health);
}
