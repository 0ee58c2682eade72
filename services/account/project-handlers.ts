// Projects as their operator and their own callers see them. How one is deleted is in delete-project.ts.
import { StatusError } from "#libs/errors.ts";
import type { UpdateProjectRequest } from "#proto/deputy/account/v1/projects.ts";
import { appId } from "./app-choice.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { projectMessage } from "./messages.ts";
import { listAppsWithOauthApp } from "./oauth-apps.ts";
import type { CatalogOf } from "./own-apps.ts";
import { requestedPage } from "./pages.ts";
import {
  getProject,
  insertProject,
  listProjects,
  lockProject,
  type ProjectSettings,
  toldOfProject,
  updateProject,
} from "./projects.ts";
import type { AccountDatabase } from "./schema.ts";

type Methods = "createProject" | "getProject" | "listProjects" | "updateProject" | "listProjectApps";

export function projectHandlers(
  { db, catalogOf }: { db: AccountDatabase; catalogOf: CatalogOf },
  now: () => number,
): HandlerGroup<Methods> {
  return {
    async createProject({ name, appName, supportEmail, requireKeyAuthTest }, call) {
      if (call.caller.token !== undefined) throw operatorRequired();
      const time = new Date(now());
      const row = await db.transaction().execute(async (tx) => {
        const made = await insertProject(tx, { name, appName, supportEmail, requireKeyAuthTest }, time);
        const entry = { projectId: made.id, action: "CreateProject", resourceId: made.id, after: toldOfProject(made) };
        await insertAuditEntries(tx, call, time, entry);
        return made;
      });
      return { project: projectMessage(row) };
    },

    async getProject({ projectId }) {
      return { project: projectMessage(await getProject(db, projectId)) };
    },

    async listProjects(request, call) {
      const filter = { id: call.caller.token?.projectId ?? "", query: request.query };
      const { rows, nextPageToken, totalSize } = await listProjects(db, filter, requestedPage(request));
      return { projects: rows.map(projectMessage), nextPageToken, totalSize };
    },

    async updateProject(request, call) {
      const { projectId } = request;
      const change = changeOf(request);
      if (Object.keys(change).length === 0) return { project: projectMessage(await getProject(db, projectId)) };
      const time = new Date(now());
      const row = await db.transaction().execute(async (tx) => {
        const before = toldOfProject(await lockProject(tx, projectId, "change"));
        const changed = await updateProject(tx, projectId, change, time);
        const entry = { projectId, action: "UpdateProject", resourceId: projectId, before };
        await insertAuditEntries(tx, call, time, { ...entry, after: toldOfProject(changed) });
        return changed;
      });
      return { project: projectMessage(row) };
    },

    async listProjectApps({ projectId }) {
      await getProject(db, projectId);
      const [slugs, catalog] = await Promise.all([listAppsWithOauthApp(db, projectId), catalogOf(projectId)]);
      return {
        apps: slugs.map((appSlug) => {
          const app = catalog.get(appSlug);
          return { appId: app === undefined ? "" : appId(app), appSlug };
        }),
      };
    },
  };
}

/** What is given of the request's settings. */
function changeOf(request: UpdateProjectRequest): Partial<ProjectSettings> {
  const { name, appName, supportEmail, requireKeyAuthTest } = request;
  const given = Object.entries({ name, appName, supportEmail, requireKeyAuthTest });
  return Object.fromEntries(given.filter(([, value]) => value !== undefined));
}

function operatorRequired(): StatusError {
  const message =
    "A token acts in the project that it was issued for and makes no others: the operator makes projects, with the " +
    "operator's certificate and AccountService.CreateProject.";
  return new StatusError("PERMISSION_DENIED", "OPERATOR_REQUIRED", message);
}
