// OAuth apps: a project's own clients at providers. A client's secret goes straight to the vault and never comes back. The vault
// is told first and the row is written second: a failure in between is mended by the same call, and until then the vault knows
// the secret that was there before as well as the new one.
import { invalidField, notFound } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import type { UpdateOauthAppRequest } from "#proto/deputy/account/v1/apps.ts";
import { getNamedApp } from "./app-choice.ts";
import { insertAuditEntries, type Told } from "./audit-entries.ts";
import { afterwards, type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { oauthAppMessage } from "./messages.ts";
import {
  getOauthApp,
  insertOauthApp,
  listOauthApps,
  lockOauthApp,
  type OauthAppChange,
  updateOauthApp,
} from "./oauth-apps.ts";
import type { CatalogOf } from "./own-apps.ts";
import { requestedPage } from "./pages.ts";
import { getProject, holdProject } from "./projects.ts";
import type { AccountDatabase, OauthAppRow } from "./schema.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "putOauthClient" | "destroyOauthClient">;
  readonly catalogOf: CatalogOf;
  readonly redirectUri: string;
}

export function oauthAppHandlers(
  { db, vault, catalogOf, redirectUri }: Collaborators,
  now: () => number,
): HandlerGroup<"createOauthApp" | "getOauthApp" | "listOauthApps" | "updateOauthApp"> {
  /** Writes the change down; undefined when the OAuth app is gone. */
  async function writeChange(row: OauthAppRow, change: OauthAppChange, hasNewSecret: boolean, call: Call) {
    const time = new Date(now());
    return db.transaction().execute(async (tx) => {
      const before = await lockOauthApp(tx, row);
      if (before === undefined) return undefined;
      const after = await updateOauthApp(tx, row, change, time);
      await insertAuditEntries(tx, call, time, {
        projectId: row.projectId,
        action: "UpdateOauthApp",
        resourceId: row.id,
        before: toldOauthApp(before),
        after: { ...toldOauthApp(after), ...(hasNewSecret && { clientSecret: "changed" }) },
      });
      return after;
    });
  }

  /** For a client whose row is not there: nobody could name it to destroy it. */
  async function destroyRemains({ projectId, id }: Pick<OauthAppRow, "projectId" | "id">, call: Call): Promise<void> {
    await vault.destroyOauthClient({ projectId, oauthAppId: id }, afterwards(call));
  }

  return {
    async createOauthApp(request, call) {
      const { projectId, clientId, clientSecret, name, description, scopes, additionalScopes } = request;
      const app = getNamedApp(await catalogOf(projectId), request.appSlug);
      if (app.auth !== "oauth2") throw invalidField("app_slug", "is an app without OAuth");
      await getProject(db, projectId);
      const time = new Date(now());
      const times = { createTime: time, updateTime: time };
      const row = { projectId, id: newId("oa"), appSlug: app.slug, clientId, name, description, scopes, ...times };
      await vault.putOauthClient(clientOf(row, clientSecret), ownRight(call));
      try {
        const made = await db.transaction().execute(async (tx) => {
          await holdProject(tx, projectId);
          const inserted = await insertOauthApp(tx, { ...row, additionalScopes });
          const entry = { projectId, action: "CreateOauthApp", resourceId: row.id, after: toldOauthApp(inserted) };
          await insertAuditEntries(tx, call, time, entry);
          return inserted;
        });
        return { oauthApp: oauthAppMessage(made, redirectUri) };
      } catch (error) {
        await Promise.allSettled([destroyRemains(row, call)]);
        throw error;
      }
    },

    async getOauthApp({ projectId, oauthAppId }) {
      return { oauthApp: oauthAppMessage(await getOauthApp(db, projectId, oauthAppId), redirectUri) };
    },

    async listOauthApps(request) {
      const { projectId, query } = request;
      const appSlug = request.appSlug === "" ? "" : getNamedApp(await catalogOf(projectId), request.appSlug).slug;
      const page = await listOauthApps(db, { projectId, appSlug, query }, requestedPage(request));
      const { nextPageToken, totalSize } = page;
      return { oauthApps: page.rows.map((row) => oauthAppMessage(row, redirectUri)), nextPageToken, totalSize };
    },

    async updateOauthApp(request, call) {
      const { clientSecret } = request;
      const change = judgeChange(request);
      const row = await getOauthApp(db, request.projectId, request.oauthAppId);
      const client = clientOf({ ...row, ...change }, clientSecret);
      const isOther = client.clientId !== row.clientId;
      if (isOther || clientSecret !== "") {
        // Another client's secrets are of no use beside new ones; without new ones the id alone was wrong.
        const keepSecrets = !isOther || clientSecret === "";
        await vault.putOauthClient({ ...client, keepSecrets }, ownRight(call));
      }
      const after = await writeChange(row, change, clientSecret !== "", call);
      if (after !== undefined) return { oauthApp: oauthAppMessage(after, redirectUri) };
      await destroyRemains(row, call);
      throw notFound("OAuth app");
    },
  };
}

/** The vault's request; without a secret it is a public client, or keeps the ones it has. */
function clientOf(
  { projectId, id, appSlug, clientId }: Pick<OauthAppRow, "projectId" | "id" | "appSlug" | "clientId">,
  clientSecret: string,
) {
  const clientSecrets = clientSecret === "" ? [] : [clientSecret];
  return { projectId, oauthAppId: id, appSlug, clientId, clientSecrets };
}

function judgeChange(request: UpdateOauthAppRequest): OauthAppChange {
  const { clientId, name, description, scopes, additionalScopes, clearScopes, clearAdditionalScopes } = request;
  if (clientId === "") throw invalidField("client_id", "is required");
  if (clearScopes && scopes.length > 0) throw invalidField("clear_scopes", "goes not together with new scopes");
  if (clearAdditionalScopes && additionalScopes.length > 0) {
    throw invalidField("clear_additional_scopes", "goes not together with new additional scopes");
  }
  return {
    ...(clientId !== undefined && { clientId }),
    ...(name !== undefined && { name }),
    ...(description !== undefined && { description }),
    ...((clearScopes || scopes.length > 0) && { scopes }),
    ...((clearAdditionalScopes || additionalScopes.length > 0) && { additionalScopes }),
  };
}

/** What the audit tells of an OAuth app. */
export function toldOauthApp({ projectId: _, id: __, ...told }: OauthAppRow): Told {
  return told;
}
