// Accounts as callers see them. GetAccount stands on the path of every forwarded request: one read, and no call.
import { AccountHealth } from "#proto/deputy/account/v1/accounts.ts";
import { getAccount, listAccounts } from "./accounts.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { accountMessage } from "./messages.ts";
import { requestedPage } from "./pages.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

export function accountHandlers({ db }: { db: AccountDatabase }): HandlerGroup<"getAccount" | "listAccounts"> {
  return {
    async getAccount(request) {
      return { account: accountMessage(await getAccount(db, request, request.accountId)) };
    },
    async listAccounts(request) {
      const { projectId, environment, externalUserId, appSlug, oauthAppId } = request;
      const health = healthName(request.health);
      const filter = { projectId, environment, externalUserId, appSlug, oauthAppId, ...(health && { health }) };
      const { rows, nextPageToken, totalSize } = await listAccounts(db, filter, requestedPage(request));
      return { accounts: rows.map(accountMessage), nextPageToken, totalSize };
    },
  };
}

function healthName(health: AccountHealth): AccountRow["health"] | undefined {
  return (["HEALTHY", "UNHEALTHY", "DEAD"] as const).find((name) => AccountHealth[name] === health);
}
