// The audit as the operator and the project's own callers read it. It outlives its project, so nobody asks whether that is there.
import { listAuditEntries } from "./audit-entries.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { auditEntryMessage } from "./messages.ts";
import { requestedPage } from "./pages.ts";
import type { AccountDatabase } from "./schema.ts";

export function auditHandlers({ db }: { db: AccountDatabase }): HandlerGroup<"listAuditEntries"> {
  return {
    async listAuditEntries(request) {
      const { rows, nextPageToken } = await listAuditEntries(db, request, requestedPage(request));
      return { entries: rows.map(auditEntryMessage), nextPageToken };
    },
  };
}
