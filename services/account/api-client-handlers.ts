// API clients, for the operator. A secret is shown by the call that makes it and kept as a digest; audit entries have none.
import { digest, randomText } from "#libs/ids.ts";
import { deleteApiClient, insertApiClient, listApiClients, rotateSecret } from "./api-clients.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { apiClientMessage } from "./messages.ts";
import { requestedPage } from "./pages.ts";
import { getProject, holdProject } from "./projects.ts";
import type { AccountDatabase, ApiClientRow, Told } from "./schema.ts";
import { checkScope } from "./scopes.ts";

type Methods = "createApiClient" | "listApiClients" | "rotateApiClientSecret" | "deleteApiClient";

const defaultOverlapSeconds = 86_400;

export function apiClientHandlers({ db }: { db: AccountDatabase }, now: () => number): HandlerGroup<Methods> {
  return {
    async createApiClient({ projectId, name, scopes }, call) {
      for (const scope of scopes) checkScope("scopes", scope);
      const clientSecret = randomText();
      const time = new Date(now());
      const row = await db.transaction().execute(async (tx) => {
        await holdProject(tx, projectId);
        const client = { projectId, name, scopes: scopes.length > 0 ? scopes : ["*"] };
        const made = await insertApiClient(tx, { ...client, secretDigest: digest(clientSecret) }, time);
        const entry = { projectId, action: "CreateApiClient", resourceId: made.id, after: toldOfApiClient(made) };
        await insertAuditEntries(tx, call, time, entry);
        return made;
      });
      return { apiClient: apiClientMessage(row), clientSecret };
    },

    async listApiClients(request) {
      await getProject(db, request.projectId);
      const { rows, nextPageToken } = await listApiClients(db, request.projectId, requestedPage(request));
      return { apiClients: rows.map(apiClientMessage), nextPageToken };
    },

    async rotateApiClientSecret({ projectId, clientId, overlapSeconds = defaultOverlapSeconds }, call) {
      const clientSecret = randomText();
      const time = new Date(now());
      const overlapEnd = new Date(time.getTime() + overlapSeconds * 1000);
      const row = await db.transaction().execute(async (tx) => {
        const key = { projectId, id: clientId };
        const rotated = await rotateSecret(tx, key, digest(clientSecret), { time, overlapEnd });
        const entry = {
          projectId,
          action: "RotateApiClientSecret",
          resourceId: clientId,
          after: toldOfApiClient(rotated),
        };
        await insertAuditEntries(tx, call, time, entry);
        return rotated;
      });
      return { apiClient: apiClientMessage(row), clientSecret };
    },

    async deleteApiClient({ projectId, clientId }, call) {
      await db.transaction().execute(async (tx) => {
        const before = toldOfApiClient(await deleteApiClient(tx, { projectId, id: clientId }));
        const entry = { projectId, action: "DeleteApiClient", resourceId: clientId, before };
        await insertAuditEntries(tx, call, new Date(now()), entry);
      });
      return {};
    },
  };
}

function toldOfApiClient({ name, scopes, previousSecretExpireTime }: ApiClientRow): Told {
  return { name, scopes, ...(previousSecretExpireTime !== null && { previousSecretExpireTime }) };
}
