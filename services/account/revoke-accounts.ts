// DeleteAccount and RevokeAllAccounts. For each account: REVOKING here, destroyed in the vault, REVOKED here, receipt. From
// the first step on every lookup refuses the account, so a failure anywhere leaves it unusable and never half open; a
// repeat takes up what is REVOKING. The vault answers only when no lease of the credentials can be in use any more.
import type { Call } from "#libs/rpc.ts";
import {
  ProviderRevocation,
  RevocationReceipt,
  type RevokeAllAccountsRequest,
  type RevokeAllAccountsResponse,
} from "#proto/deputy/account/v1/accounts.ts";
import {
  type AccountFilter,
  claimForRevocation,
  countUnrevoked,
  finishRevocation,
  getAnyAccount,
  listUnrevoked,
} from "./accounts.ts";
import { endConnecting } from "./end-connecting.ts";
import { type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

// One transaction of the vault each: large enough to be quick, small enough for receipts to flow and locks to be short.
const batchSize = 200;

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "destroyCredentials">;
}

export function revocationHandlers(
  { db, vault }: Collaborators,
  now: () => number,
): HandlerGroup<"deleteAccount" | "revokeAllAccounts"> {
  /** Destroys the credentials of accounts of one environment that are no longer ACTIVE. */
  async function destroy(rows: readonly AccountRow[], call: Call): Promise<readonly RevocationReceipt[]> {
    const [first] = rows;
    if (first === undefined) return [];
    const accountIds = rows.map(({ id }) => id);
    const { projectId, environment } = first;
    const { receipts } = await vault.destroyCredentials({ projectId, environment, accountIds }, ownRight(call));
    const time = new Date(now());
    await finishRevocation(db, projectId, accountIds, time);
    const byAccount = new Map(receipts.map((receipt) => [receipt.accountId, receipt]));
    return rows.map((row) => byAccount.get(row.id) ?? nothingDestroyed(row, time));
  }

  async function* revokeAll(filter: AccountFilter, call: Call): AsyncGenerator<RevokeAllAccountsResponse> {
    // First, so that nothing begun before comes to be an account after.
    if (isOfUsers(filter)) await endConnecting(db, filter, new Date(now()));
    let totalSize = await countUnrevoked(db, filter);
    // Accounts that are connected while this runs are revoked too: who asks for this wants none to be left.
    for (let sent = 0; ; ) {
      const rows = await claimForRevocation(db, filter, batchSize, new Date(now()));
      if (rows.length === 0) return;
      totalSize = Math.max(totalSize, sent + rows.length);
      for (const receipt of await destroy(rows, call)) yield { receipt, totalSize };
      sent += rows.length;
    }
  }

  async function* rehearse(filter: AccountFilter): AsyncGenerator<RevokeAllAccountsResponse> {
    const totalSize = await countUnrevoked(db, filter);
    let after: AccountRow | undefined;
    for (;;) {
      const rows = await listUnrevoked(db, filter, { size: batchSize, after });
      for (const row of rows) yield { receipt: RevocationReceipt.fromPartial(whose(row)), totalSize };
      after = rows.at(-1);
      if (after === undefined) return;
    }
  }

  return {
    async deleteAccount(request, call) {
      const row = await getAnyAccount(db, request, request.accountId);
      const { projectId, environment, externalUserId, id: accountId } = row;
      await claimForRevocation(db, { projectId, environment, externalUserId, accountId }, 1, new Date(now()));
      const [receipt] = await destroy([row], call);
      return { receipt };
    },
    revokeAllAccounts(request, call) {
      const filter = filterOf(request);
      return request.dryRun ? rehearse(filter) : revokeAll(filter, call);
    },
  };
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

/** Whether everything of a user, or of all users, is to go: not some app's accounts alone. */
function isOfUsers({ accountId, appSlug, oauthAppId }: AccountFilter): boolean {
  return !accountId && !appSlug && !oauthAppId;
}

function whose({ id, externalUserId, appSlug }: AccountRow) {
  return { accountId: id, externalUserId, appSlug };
}

/** The receipt of an account for which the vault had no credential. */
function nothingDestroyed(row: AccountRow, time: Date): RevocationReceipt {
  return RevocationReceipt.fromPartial({
    ...whose(row),
    destroyTime: row.revokeTime ?? time,
    providerRevocation: ProviderRevocation.NOT_APPLICABLE,
  });
}
