// External users as the project's callers see them.
import { listUsers } from "./external-users.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { userMessage } from "./messages.ts";
import { requestedPage } from "./pages.ts";
import type { AccountDatabase } from "./schema.ts";

export function userHandlers({ db }: { db: AccountDatabase }): HandlerGroup<"listUsers"> {
  return {
    async listUsers(request, call) {
      const { rows, nextPageToken, totalSize } = await listUsers(
        db,
        { ...request, actor: call.caller.token?.actor },
        requestedPage(request),
      );
      return { users: rows.map(userMessage), nextPageToken, totalSize };
    },
  };
}
