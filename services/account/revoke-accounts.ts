// DeleteAccount and RevokeAllAccounts; how an account is revoked is in revocation.ts. A repeat finds what was revoked before gone
// and leaves it out. A caller whose stream broke, or who was killed, may have lost receipts: asked for, a repeat gives those as
// well, so that in the end there is one for each account.
import { invalidField } from "#libs/errors.ts";
import {
  RevocationReceipt,
  type RevokeAllAccountsRequest,
  type RevokeAllAccountsResponse,
} from "#proto/deputy/account/v1/accounts.ts";
import { claimForRevocation, countRevoked, countUnrevoked, listRevoked, listUnrevoked } from "./account-revocations.ts";
import { type AccountFilter, getAnyAccount } from "./accounts.ts";
import { endConnecting } from "./end-connecting.ts";
import { type HandlerGroup, toDo } from "./handler-group.ts";
import { batchSize, destroyAccounts, type Revoking, type RevokingCall, revokeMatching, whose } from "./revocation.ts";
import type { AccountRow } from "./schema.ts";

export function revocationHandlers(
  { db, vault }: Pick<Revoking, "db" | "vault">,
  now: () => number,
): HandlerGroup<"deleteAccount" | "revokeAllAccounts"> {
  const revoking = { db, vault, now };

  async function* revokeAll(filter: AccountFilter, includeRevoked: boolean, by: RevokingCall) {
    // First, so that nothing begun before comes to be an account after.
    if (isOfUsers(filter)) await endConnecting(db, filter, new Date(now()));
    const before = includeRevoked ? await countRevoked(db, filter) : 0;
    const sent = new Set<string>();
    for await (const { receipt, totalSize } of revokeMatching(revoking, filter, by)) {
      if (includeRevoked) sent.add(receipt.accountId);
      yield { receipt, totalSize: totalSize + before };
    }
    if (includeRevoked) yield* revokedBefore(filter, sent, by);
  }

  async function* revokedBefore(filter: AccountFilter, sent: ReadonlySet<string>, by: RevokingCall) {
    const totalSize = await countRevoked(db, filter);
    for await (const rows of pages((after) => listRevoked(db, filter, { size: batchSize, after }))) {
      const unsent = rows.filter(({ id }) => !sent.has(id));
      for (const receipt of await destroyAccounts(revoking, unsent, by)) yield { receipt, totalSize };
    }
  }

  async function* rehearse(filter: AccountFilter): AsyncGenerator<RevokeAllAccountsResponse> {
    const totalSize = await countUnrevoked(db, filter);
    for await (const rows of pages((after) => listUnrevoked(db, filter, { size: batchSize, after }))) {
      for (const row of rows) yield { receipt: RevocationReceipt.fromPartial(whose(row)), totalSize };
    }
  }

  return {
    async deleteAccount(request, call) {
      const row = await getAnyAccount(db, request, request.accountId, toDo("manage", call));
      const { projectId, environment, externalUserId, id: accountId } = row;
      const [claimed = row] = await claimForRevocation(
        db,
        { projectId, environment, externalUserId, accountId },
        { size: 1, after: undefined },
        new Date(now()),
      );
      const [receipt] = await destroyAccounts(revoking, [claimed], { action: "DeleteAccount", call });
      return { receipt };
    },
    revokeAllAccounts(request, call) {
      const { dryRun, includeRevoked } = request;
      const filter = { ...filterOf(request), actor: call.caller.token?.actor };
      if (dryRun && includeRevoked) throw invalidField("include_revoked", "means nothing in a dry run");
      return dryRun ? rehearse(filter) : revokeAll(filter, includeRevoked, { action: "RevokeAllAccounts", call });
    },
  };
}

async function* pages(
  read: (after: AccountRow | undefined) => Promise<readonly AccountRow[]>,
): AsyncGenerator<readonly AccountRow[]> {
  let after: AccountRow | undefined;
  for (;;) {
    const rows = await read(after);
    if (rows.length > 0) yield rows;
    after = rows.at(-1);
    if (after === undefined) return;
  }
}

function filterOf({ projectId, environment, target }: RevokeAllAccountsRequest): AccountFilter {
  const all = { projectId, environment, externalUserId: "" };
  switch (target?.$case) {
    case "externalUserId":
      return { ...all, externalUserId: target.value };
    case "appSlug":
      return { ...all, appSlug: target.value };
    case "oauthAppId":
      return { ...all, oauthAppId: target.value };
    case "wholeEnvironment":
      return all;
    default:
      // The contract requires one; a new one must not come to mean everything.
      throw new Error("a target without a filter");
  }
}

/** Whether everything of a user, or of all users, is to go: not some app's accounts alone, nor those of one member. */
function isOfUsers({ accountId, appSlug, oauthAppId, actor }: AccountFilter): boolean {
  return !accountId && !appSlug && !oauthAppId && actor === undefined;
}
