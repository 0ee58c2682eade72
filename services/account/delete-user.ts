// DeleteUser: revokes everything of a user, then erases the user. Each step may be repeated, and a repeat of the whole goes on
// where a process was killed:
//
//   1 connections and connect tokens end (end-connecting.ts), so that nothing of before is connected while this runs
//   2 accounts are revoked as RevokeAllAccounts does it (revocation.ts), and their receipts fetched, those of before too
//   3 the vault puts a pseudonym in the place of the user's id, and destroys what no account names
//   4 one transaction does the same here (erasure.ts), with the audit entry
//
// The receipts are signed while the id is still known, so the caller's proof names the user; those that are asked for again
// later name the pseudonym. An account that is connected while this runs is revoked in step 2 if it is there by then; one
// that comes later belongs to a user who has come back.
import type { Call } from "#libs/rpc.ts";
import type { RevocationReceipt } from "#proto/deputy/account/v1/accounts.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import { endConnecting } from "./end-connecting.ts";
import { eraseUser, listTombstones, pseudonymOf } from "./erasure.ts";
import { type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { batchSize, destroyAccounts, revokeMatching } from "./revocation.ts";
import type { AccountDatabase, EnvironmentNumber } from "./schema.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "destroyCredentials" | "eraseUser">;
}

export function deleteUserHandler({ db, vault }: Collaborators, now: () => number): HandlerGroup<"deleteUser"> {
  const revoking = { db, vault, now };
  return {
    async deleteUser({ projectId, externalUserId, ...request }, call) {
      const user = { projectId, environment: request.environment as EnvironmentNumber, externalUserId };
      const pseudonym = pseudonymOf(user);
      const by = { action: "DeleteUser", call } as const;
      await endConnecting(db, user, new Date(now()), "The user was erased.");
      const receipts = new Map<string, RevocationReceipt>();
      for await (const { receipt } of revokeMatching(revoking, user, by)) receipts.set(receipt.accountId, receipt);
      const before = (await listTombstones(db, user)).filter(({ id }) => !receipts.has(id));
      for (let from = 0; from < before.length; from += batchSize) {
        const some = await destroyAccounts(revoking, before.slice(from, from + batchSize), by);
        for (const receipt of some) receipts.set(receipt.accountId, receipt);
      }
      await vault.eraseUser({ ...user, pseudonym }, ownRight(call));
      const time = new Date(now());
      await db.transaction().execute(async (tx) => {
        if (!(await eraseUser(tx, user, time))) return;
        // Not the id: this entry outlives the user.
        const entry = { projectId, action: "DeleteUser", resourceId: pseudonym };
        await insertAuditEntries(tx, underPseudonym(call, pseudonym), time, entry);
      });
      return { receipts: [...receipts.values()] };
    },
  };
}

/** The call as the audit keeps it: a user who erases itself is not named by its id either. */
function underPseudonym({ caller, requestId }: Call, pseudonym: string): Pick<Call, "caller" | "requestId"> {
  const { token } = caller;
  if (token?.externalUserId === undefined) return { caller, requestId };
  return { caller: { ...caller, token: { ...token, externalUserId: pseudonym } }, requestId };
}
