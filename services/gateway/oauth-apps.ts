// The projects' OAuth apps over REST: an app as the catalog has it, with what the project says of its own client at the provider.
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { invalidField } from "#libs/errors.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { OauthApp } from "#proto/deputy/account/v1/apps.ts";
import { type AppClient, appSlugOf, appsOf } from "./apps.ts";
import { oauthAppJson, pageJson } from "./json-shapes.ts";
import { bodyOf, callerCall, pageOf, pathParameter, queryOf, revokeTimeoutMs, scopeOf, single } from "./requests.ts";

type Methods = `${"create" | "get" | "update" | "delete"}OauthApp` | "listOauthApps";

/** What is asked about OAuth apps. */
export type OauthAppClient = AppClient & Pick<Client<typeof AccountServiceDefinition>, Methods>;

const texts = z.array(z.string()).max(200).nullish();
const updateBody = z.object({
  client_id: z.string().min(1).max(1000).optional(),
  client_secret: z.string().max(8192).nullish(),
  name: z.string().max(250).nullish(),
  description: z.string().max(2000).nullish(),
  scopes: texts,
  additional_scopes: texts,
});
const createBody = updateBody.extend({ app: z.string().min(1).max(100), client_id: z.string().min(1).max(1000) });

/** Adds the routes. */
export function addOauthAppRoutes(app: FastifyInstance, account: OauthAppClient): void {
  async function jsonOf(oauthApps: readonly OauthApp[], call: CallOptions) {
    const slugs = oauthApps.map(({ appSlug }) => appSlug);
    const apps = await appsOf(account, slugs, call);
    return oauthApps.map((item) => oauthAppJson(item, apps(item.appSlug)));
  }

  async function oneJson(oauthApp: OauthApp | undefined, call: CallOptions) {
    const [json] = await jsonOf(oauthApp === undefined ? [] : [oauthApp], call);
    if (json === undefined) throw new Error("the account service answered without an OAuth app");
    return json;
  }

  const all = "/v1/connect/:project_id/oauth_apps";
  const one = `${all}/:oauth_app_id`;

  app.get(all, async (request) => {
    const [query, call] = [queryOf(request), callerCall(request)];
    const { projectId } = scopeOf(request);
    const appSlug = await appSlugOf(account, single(query, "app"), call);
    const filter = { projectId, appSlug, query: single(query, "q") };
    const page = await account.listOauthApps({ ...filter, ...pageOf(query) }, call);
    return pageJson(await jsonOf(page.oauthApps, call), page);
  });

  app.post(all, async (request) => {
    const [body, call] = [bodyOf(createBody, request), callerCall(request)];
    const made = await account.createOauthApp(
      {
        projectId: scopeOf(request).projectId,
        appSlug: await appSlugOf(account, body.app, call),
        clientId: body.client_id,
        clientSecret: body.client_secret ?? "",
        name: body.name ?? "",
        description: body.description ?? "",
        scopes: body.scopes ?? [],
        additionalScopes: body.additional_scopes ?? [],
      },
      call,
    );
    return oneJson(made.oauthApp, call);
  });

  app.get(one, async (request) => {
    const call = callerCall(request);
    const { oauthApp } = await account.getOauthApp(named(request), call);
    return oneJson(oauthApp, call);
  });

  app.put(one, async (request) => {
    const [body, call] = [bodyOf(updateBody, request), callerCall(request)];
    const { client_id: clientId, name, description, scopes, additional_scopes: additionalScopes } = body;
    const changed = await account.updateOauthApp(
      {
        ...named(request),
        ...(clientId !== undefined && { clientId }),
        clientSecret: body.client_secret ?? "",
        // Null takes away what is there; what is not given stays.
        ...(name !== undefined && { name: name ?? "" }),
        ...(description !== undefined && { description: description ?? "" }),
        scopes: scopes ?? [],
        clearScopes: isCleared(scopes),
        additionalScopes: additionalScopes ?? [],
        clearAdditionalScopes: isCleared(additionalScopes),
      },
      call,
    );
    return oneJson(changed.oauthApp, call);
  });

  app.delete(one, async (request, reply) => {
    const revoke = single(queryOf(request), "revoke_accounts");
    if (!["", "true", "false"].includes(revoke)) throw invalidField("revoke_accounts", "must be true or false");
    const call = callerCall(request, revokeTimeoutMs);
    await account.deleteOauthApp({ ...named(request), revokeAccounts: revoke === "true" }, call);
    return reply.code(204).send();
  });
}

function named(request: Parameters<typeof scopeOf>[0]) {
  const oauthAppId = pathParameter(request, "oauth_app_id");
  return { projectId: scopeOf(request).projectId, oauthAppId };
}

function isCleared(scopes: readonly string[] | null | undefined): boolean {
  return scopes === null || scopes?.length === 0;
}
