// Projects over REST: a caller's own. They are made by the operator over gRPC, which the answer to a POST says.
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { unimplemented } from "#libs/errors.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { Project } from "#proto/deputy/account/v1/projects.ts";
import { pageJson, projectJson } from "./json-shapes.ts";
import { bearerOf, bodyOf, callerCall, pageOf, pathParameter, queryOf, scopeOf, single } from "./requests.ts";

type Methods = "createProject" | "getProject" | "listProjects" | "updateProject" | "deleteProject" | "listProjectApps";

/** What is asked about projects. */
export type ProjectClient = Pick<Client<typeof AccountServiceDefinition>, Methods>;

const name = z.string().min(1).max(250);
const text = z.string().max(250).nullish();
const createBody = z.object({
  name,
  app_name: text,
  support_email: text,
  connect_require_key_auth_test: z.boolean().nullish(),
});
const updateBody = createBody.extend({ name: name.nullish() });

/** Adds the routes. */
export function addProjectRoutes(app: FastifyInstance, account: ProjectClient): void {
  async function infoJson(projectId: string, call: CallOptions) {
    const { apps } = await account.listProjectApps({ projectId }, call);
    return { apps: apps.map(({ appId, appSlug }) => ({ id: appId || null, name_slug: appSlug })) };
  }

  app.get("/v1/connect/projects", async (request) => {
    const query = queryOf(request);
    const page = await account.listProjects({ query: single(query, "q"), ...pageOf(query) }, callerCall(request));
    return pageJson(page.projects.map(projectJson), page);
  });

  app.post("/v1/connect/projects", async (request, reply) => {
    const body = bodyOf(createBody, request);
    const made = await account.createProject({ name: body.name, ...settingsOf(body) }, callerCall(request));
    return reply.code(201).send(oneJson(made.project));
  });

  app.get("/v1/connect/projects/:project_id", async (request) => {
    const projectId = pathParameter(request, "project_id");
    // Without a project in the path, `info` is what a user's browser asks for; a server asks for the project of that id.
    if (projectId === "info" && bearerOf(request)?.startsWith("ctok_")) return infoJson("", callerCall(request));
    return oneJson((await account.getProject({ projectId }, callerCall(request))).project);
  });

  app.patch("/v1/connect/projects/:project_id", async (request) => {
    const body = bodyOf(updateBody, request);
    const change = { ...(body.name != null && { name: body.name }), ...settingsOf(body) };
    const projectId = pathParameter(request, "project_id");
    return oneJson((await account.updateProject({ projectId, ...change }, callerCall(request))).project);
  });

  app.delete("/v1/connect/projects/:project_id", async (request, reply) => {
    await account.deleteProject({ projectId: pathParameter(request, "project_id") }, callerCall(request));
    return reply.code(204).send();
  });

  app.post("/v1/connect/projects/:project_id/logo", async () => {
    throw unimplemented("A project's logo");
  });

  app.get("/v1/connect/:project_id/projects/info", async (request) =>
    infoJson(scopeOf(request).projectId, callerCall(request)),
  );
}

/** The settings that a body gives; null is none. */
function settingsOf(body: Omit<z.infer<typeof updateBody>, "name">) {
  const { app_name: appName, support_email: supportEmail, connect_require_key_auth_test: requireKeyAuthTest } = body;
  return {
    ...(appName != null && { appName }),
    ...(supportEmail != null && { supportEmail }),
    ...(requireKeyAuthTest != null && { requireKeyAuthTest }),
  };
}

function oneJson(project: Project | undefined) {
  if (project === undefined) throw new Error("the account service answered without a project");
  return projectJson(project);
}
