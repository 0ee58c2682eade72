// DeleteOauthApp: refused while accounts use the OAuth app, or these are revoked first when asked. The row goes last, so that a
// call which ended anywhere before is taken up by the same call; nothing of it can be left that nobody could name.
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import { RevokeAllAccountsRequest } from "#proto/deputy/account/v1/accounts.ts";
import { countUnrevoked } from "./account-revocations.ts";
import { countOverridesWith } from "./app-overrides.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import { type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { toldOfOauthApp } from "./oauth-app-handlers.ts";
import { deleteOauthApp, getOauthApp, lockOauthApp } from "./oauth-apps.ts";
import type { AccountDatabase, EnvironmentNumber, OauthAppRow } from "./schema.ts";

interface Collaborators extends HandlerGroup<"revokeAllAccounts"> {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "destroyOauthClient">;
}

// An OAuth app is the project's, its accounts are in both.
const environments: readonly EnvironmentNumber[] = [1, 2];

export function deleteOauthAppHandler(
  { db, vault, revokeAllAccounts }: Collaborators,
  now: () => number,
): HandlerGroup<"deleteOauthApp"> {
  async function revokeAccountsOf({ projectId, id }: OauthAppRow, call: Call): Promise<void> {
    const target = { $case: "oauthAppId", value: id } as const;
    for (const environment of environments) {
      const request = RevokeAllAccountsRequest.fromPartial({ projectId, environment, target });
      for await (const _receipt of revokeAllAccounts(request, call));
    }
  }

  return {
    async deleteOauthApp({ projectId, oauthAppId, revokeAccounts }, call) {
      const row = await getOauthApp(db, projectId, oauthAppId);
      await refuseWhileChosen(db, row);
      if (revokeAccounts) await revokeAccountsOf(row, call);
      await refuseWhileUsed(db, row);
      await vault.destroyOauthClient({ projectId, oauthAppId }, ownRight(call));
      // Once more: a connection can have ended meanwhile. From here on the vault completes none.
      if (revokeAccounts) await revokeAccountsOf(row, call);
      await db.transaction().execute(async (tx) => {
        const locked = await lockOauthApp(tx, row);
        // Another call was quicker.
        if (locked === undefined) return;
        await refuseWhileUsed(tx, row);
        await refuseWhileChosen(tx, row);
        await deleteOauthApp(tx, row);
        const before = toldOfOauthApp(locked);
        const entry = { projectId, action: "DeleteOauthApp", resourceId: row.id, before };
        await insertAuditEntries(tx, call, new Date(now()), entry);
      });
      return {};
    },
  };
}

/** What a revocation has begun and not ended counts as well. */
async function refuseWhileUsed(db: AccountDatabase, { projectId, id }: OauthAppRow): Promise<void> {
  let count = 0;
  for (const environment of environments) {
    count += await countUnrevoked(db, { projectId, environment, externalUserId: "", oauthAppId: id });
  }
  if (count > 0) throw inUse("accounts", count, "revoke them, or ask for it with revoke_accounts");
}

async function refuseWhileChosen(db: AccountDatabase, row: OauthAppRow): Promise<void> {
  const count = await countOverridesWith(db, row);
  if (count > 0) throw inUse("app_overrides", count, "change or delete them first");
}

function inUse(what: "accounts" | "app_overrides", count: number, advice: string): StatusError {
  const message = `The OAuth app is in use, ${what.replace("_", " ")}: ${count}; ${advice}.`;
  return new StatusError("FAILED_PRECONDITION", "OAUTH_APP_IN_USE", message, { metadata: { [what]: String(count) } });
}
