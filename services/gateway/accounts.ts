// Accounts over REST. Each route is there with the project in its path, and without it for connect tokens, which name theirs.
import type { FastifyInstance, FastifyRequest } from "fastify";
import { z } from "zod";
import { invalidField } from "#libs/errors.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { Account } from "#proto/deputy/account/v1/accounts.ts";
import { type AppClient, appSlugOf, appsOf } from "./apps.ts";
import { fieldValues } from "./field-values.ts";
import { accountJson, pageJson } from "./json-shapes.ts";
import {
  bearerOf,
  bodyOf,
  callerCall,
  pageOf,
  pathParameter,
  queryOf,
  revokeTimeoutMs,
  scopeOf,
  single,
} from "./requests.ts";

type Methods = "createAccount" | "getAccount" | "listAccounts" | "deleteAccount" | "revokeAllAccounts";

/** What is asked about accounts. */
export type AccountClient = AppClient & Pick<Client<typeof AccountServiceDefinition>, Methods>;

const pageSize = 1000;

const createBody = z.object({
  app_slug: z.string().min(1),
  cfmap_json: z.string().max(1_000_000).default("{}"),
  connect_token: z.string().optional(),
  name: z.string().nullish(),
  account_id: z.string().nullish(),
  app_override_id: z.string().nullish(),
});

/** Adds the routes. */
export function addAccountRoutes(app: FastifyInstance, account: AccountClient): void {
  async function accountsJson(accounts: readonly Account[], call: CallOptions) {
    const apps = await appsOf(
      account,
      accounts.map(({ appSlug }) => appSlug),
      call,
    );
    return accounts.map((item) => accountJson(item, apps(item.appSlug)));
  }

  async function oneJson(found: Account | undefined, call: CallOptions) {
    const [json] = await accountsJson(found === undefined ? [] : [found], call);
    if (json === undefined) throw new Error("the account service answered without an account");
    return json;
  }

  /** The filter that list and listByExternalUser share; older clients say `app_id` for `app`. */
  async function filterOf(request: FastifyRequest, externalUserId: string) {
    const query = queryOf(request);
    const named = single(query, "app") || single(query, "app_id");
    const appSlug = await appSlugOf(account, named, callerCall(request));
    return { ...scopeOf(request), externalUserId, appSlug, oauthAppId: single(query, "oauth_app_id") };
  }

  async function listAll(filter: Parameters<AccountClient["listAccounts"]>[0], call: CallOptions): Promise<Account[]> {
    const all: Account[] = [];
    let pageToken = "";
    do {
      const page = await account.listAccounts({ ...filter, pageSize, pageToken }, call);
      all.push(...page.accounts);
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    return all;
  }

  for (const prefix of ["/v1/connect/:project_id", "/v1/connect"]) {
    app.get(`${prefix}/accounts`, async (request) => {
      const query = queryOf(request);
      const filter = await filterOf(request, single(query, "external_user_id"));
      const page = await account.listAccounts({ ...filter, ...pageOf(query) }, callerCall(request));
      return pageJson(await accountsJson(page.accounts, callerCall(request)), page);
    });

    app.get(`${prefix}/users/:external_user_id/accounts`, async (request) => {
      const filter = await filterOf(request, pathParameter(request, "external_user_id"));
      return accountsJson(await listAll(filter, callerCall(request)), callerCall(request));
    });

    app.get(`${prefix}/accounts/:account_id`, async (request) => {
      const named = { ...scopeOf(request), accountId: pathParameter(request, "account_id") };
      const found = await account.getAccount(named, callerCall(request));
      return oneJson(found.account, callerCall(request));
    });

    app.post(`${prefix}/accounts`, async (request) => {
      const query = queryOf(request);
      const body = bodyOf(createBody, request);
      const values = customFieldValues(body.cfmap_json);
      // A server sends its own token beside the user's: the user's is the right that is used up.
      const call = { ...callerCall(request), ...(body.connect_token !== undefined && { token: body.connect_token }) };
      const created = await account.createAccount(
        {
          ...scopeOf(request),
          externalUserId: single(query, "external_user_id"),
          oauthAppId: single(query, "oauth_app_id"),
          appSlug: await appSlugOf(account, body.app_slug, call),
          credential: { $case: "fields", value: { values } },
          name: body.name ?? "",
          accountId: body.account_id ?? "",
          appOverrideId: body.app_override_id ?? "",
        },
        call,
      );
      return oneJson(created.account, call);
    });

    app.delete(`${prefix}/accounts/:account_id`, async (request, reply) => {
      const named = { ...scopeOf(request), accountId: pathParameter(request, "account_id") };
      await account.deleteAccount(named, callerCall(request, revokeTimeoutMs));
      return reply.code(204).send();
    });

    app.delete(`${prefix}/apps/:app_id/accounts`, async (request, reply) => {
      const call = callerCall(request, revokeTimeoutMs);
      const scope = scopeOf(request);
      const appSlug = await appSlugOf(account, pathParameter(request, "app_id"), call);
      if (bearerOf(request)?.startsWith("ctok_")) {
        // A connect token reaches its own user's accounts alone, so they are named one by one.
        for (const { id } of await listAll({ ...scope, appSlug }, call)) {
          await account.deleteAccount({ ...scope, accountId: id }, call);
        }
      } else {
        const target = { $case: "appSlug", value: appSlug } as const;
        for await (const _receipt of account.revokeAllAccounts({ ...scope, target }, call));
      }
      return reply.code(204).send();
    });
  }
}

/** The values of an app's custom fields, which travel as a JSON text inside the JSON body. */
function customFieldValues(json: string): Record<string, string> {
  const parsed = fieldValues.safeParse(parse(json));
  if (!parsed.success) throw invalidField("cfmap_json", "must be the JSON text of an object of texts");
  return parsed.data;
}

// What the parser says of faulty JSON quotes it, and it holds secrets.
function parse(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}
