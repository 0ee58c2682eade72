// App overrides: an administrator fills in fields of an app that are not secret, and may choose the OAuth app; a user who
// connects with the override is asked for the rest.
import { invalidField } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import type { UpdateAppOverrideRequest } from "#proto/deputy/account/v1/apps.ts";
import { getNamedApp } from "./app-choice.ts";
import {
  type AppOverride,
  deleteAppOverride,
  getAppOverride,
  insertAppOverride,
  listAppOverrides,
  lockAppOverride,
  updateAppOverride,
} from "./app-overrides.ts";
import { insertAuditEntries, type Told } from "./audit-entries.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { appOverrideMessage } from "./messages.ts";
import { chooseOauthApp } from "./oauth-apps.ts";
import { checkOverrideFields } from "./override-choice.ts";
import type { CatalogOf } from "./own-apps.ts";
import { requestedPage } from "./pages.ts";
import { getProject, holdProject } from "./projects.ts";
import type { AccountDatabase } from "./schema.ts";

type Methods = `${"create" | "get" | "update" | "delete"}AppOverride` | "listAppOverrides";

export function appOverrideHandlers(
  { db, catalogOf }: { db: AccountDatabase; catalogOf: CatalogOf },
  now: () => number,
): HandlerGroup<Methods> {
  /** Refuses what an override of its app may not hold. */
  async function judge(tx: AccountDatabase, { projectId, appSlug, oauthAppId, fields }: AppOverride): Promise<void> {
    checkOverrideFields(getNamedApp(await catalogOf(projectId), appSlug), fields);
    if (oauthAppId !== null) await chooseOauthApp(tx, projectId, appSlug, oauthAppId);
  }

  return {
    async createAppOverride(request, call) {
      const { projectId, name, fields } = request;
      const { slug: appSlug } = getNamedApp(await catalogOf(projectId), request.appSlug);
      await getProject(db, projectId);
      const time = new Date(now());
      const owned = { projectId, id: newId("aov"), appSlug, createTime: time, updateTime: time };
      const row = { ...owned, name, oauthAppId: request.oauthAppId || null, fields };
      await judge(db, row);
      const made = await db.transaction().execute(async (tx) => {
        await holdProject(tx, projectId);
        const inserted = await insertAppOverride(tx, row);
        const after = toldAppOverride(inserted);
        await insertAuditEntries(tx, call, time, { projectId, action: "CreateAppOverride", resourceId: row.id, after });
        return inserted;
      });
      return { appOverride: appOverrideMessage(made) };
    },

    async getAppOverride({ projectId, appOverrideId }) {
      return { appOverride: appOverrideMessage(await getAppOverride(db, { projectId, id: appOverrideId })) };
    },

    async listAppOverrides(request) {
      const appSlug =
        request.appSlug === "" ? "" : getNamedApp(await catalogOf(request.projectId), request.appSlug).slug;
      const page = await listAppOverrides(db, { projectId: request.projectId, appSlug }, requestedPage(request));
      const { rows, nextPageToken, totalSize } = page;
      return { appOverrides: rows.map(appOverrideMessage), nextPageToken, totalSize };
    },

    async updateAppOverride(request, call) {
      const { projectId, appOverrideId: id } = request;
      const time = new Date(now());
      const changed = await db.transaction().execute(async (tx) => {
        const before = await lockAppOverride(tx, { projectId, id });
        const row = { ...before, ...changeOf(request), updateTime: time };
        await judge(tx, row);
        const after = await updateAppOverride(tx, row);
        const told = { before: toldAppOverride(before), after: toldAppOverride(after) };
        await insertAuditEntries(tx, call, time, { projectId, action: "UpdateAppOverride", resourceId: id, ...told });
        return after;
      });
      return { appOverride: appOverrideMessage(changed) };
    },

    async deleteAppOverride({ projectId, appOverrideId: id }, call) {
      await db.transaction().execute(async (tx) => {
        const before = toldAppOverride(await lockAppOverride(tx, { projectId, id }));
        await deleteAppOverride(tx, { projectId, id });
        const entry = { projectId, action: "DeleteAppOverride", resourceId: id, before };
        await insertAuditEntries(tx, call, new Date(now()), entry);
      });
      return {};
    },
  };
}

function changeOf({ name, oauthAppId, fields, clearFields }: UpdateAppOverrideRequest): Partial<AppOverride> {
  const hasFields = Object.keys(fields).length > 0;
  if (clearFields && hasFields) throw invalidField("clear_fields", "goes not together with new fields");
  return {
    ...(name !== undefined && { name }),
    ...(oauthAppId !== undefined && { oauthAppId: oauthAppId || null }),
    ...((clearFields || hasFields) && { fields }),
  };
}

/** Values and all: none of them is of a secret field. */
function toldAppOverride({ projectId: _, id: __, ...told }: AppOverride): Told {
  return told;
}
