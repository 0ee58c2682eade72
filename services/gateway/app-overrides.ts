// App overrides over REST: what an administrator has filled in for an app, with the app as the catalog has it.
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { AppOverride } from "#proto/deputy/account/v1/apps.ts";
import { type AppClient, appSlugOf, appsOf } from "./apps.ts";
import { fieldValues } from "./field-values.ts";
import { appOverrideJson, pageJson } from "./json-shapes.ts";
import { bodyOf, callerCall, pageOf, pathParameter, queryOf, scopeOf, single } from "./requests.ts";

type Methods = `${"create" | "get" | "update" | "delete"}AppOverride` | "listAppOverrides";

/** What is asked about app overrides. */
export type AppOverrideClient = AppClient & Pick<Client<typeof AccountServiceDefinition>, Methods>;

const name = z.string().min(1).max(250);
const oauthAppId = z.string().max(64).nullish();
const createBody = z.object({
  app: z.string().min(1).max(100),
  name,
  oauth_app_id: oauthAppId,
  cfmap: fieldValues.nullish(),
});
const updateBody = z.object({ name: name.optional(), oauth_app_id: oauthAppId, cfmap: fieldValues.nullish() });

/** Adds the routes. */
export function addAppOverrideRoutes(app: FastifyInstance, account: AppOverrideClient): void {
  async function jsonOf(overrides: readonly AppOverride[], call: CallOptions) {
    const slugs = overrides.map(({ appSlug }) => appSlug);
    const apps = await appsOf(account, slugs, call);
    return overrides.map((item) => appOverrideJson(item, apps(item.appSlug)));
  }

  async function oneJson(override: AppOverride | undefined, call: CallOptions) {
    const [json] = await jsonOf(override === undefined ? [] : [override], call);
    if (json === undefined) throw new Error("the account service answered without an app override");
    return json;
  }

  const all = "/v1/connect/:project_id/app_overrides";
  const one = `${all}/:app_override_id`;

  app.get(all, async (request) => {
    const [query, call] = [queryOf(request), callerCall(request)];
    const appSlug = await appSlugOf(account, single(query, "app"), call);
    const { projectId } = scopeOf(request);
    const page = await account.listAppOverrides({ projectId, appSlug, ...pageOf(query) }, call);
    return pageJson(await jsonOf(page.appOverrides, call), page);
  });

  app.post(all, async (request) => {
    const [body, call] = [bodyOf(createBody, request), callerCall(request)];
    const made = await account.createAppOverride(
      {
        projectId: scopeOf(request).projectId,
        appSlug: await appSlugOf(account, body.app, call),
        name: body.name,
        oauthAppId: body.oauth_app_id ?? "",
        fields: body.cfmap ?? {},
      },
      call,
    );
    return oneJson(made.appOverride, call);
  });

  app.get(one, async (request) => {
    const call = callerCall(request);
    const { appOverride } = await account.getAppOverride(named(request), call);
    return oneJson(appOverride, call);
  });

  app.put(one, async (request) => {
    const [body, call] = [bodyOf(updateBody, request), callerCall(request)];
    const changed = await account.updateAppOverride(
      {
        ...named(request),
        ...(body.name !== undefined && { name: body.name }),
        // Null takes away what is there; what is not given stays.
        ...(body.oauth_app_id !== undefined && { oauthAppId: body.oauth_app_id ?? "" }),
        fields: body.cfmap ?? {},
        clearFields: body.cfmap !== undefined && Object.keys(body.cfmap ?? {}).length === 0,
      },
      call,
    );
    return oneJson(changed.appOverride, call);
  });

  app.delete(one, async (request, reply) => {
    await account.deleteAppOverride(named(request), callerCall(request));
    return reply.code(204).send();
  });
}

function named(request: Parameters<typeof scopeOf>[0]) {
  const appOverrideId = pathParameter(request, "app_override_id");
  return { projectId: scopeOf(request).projectId, appOverrideId };
}
