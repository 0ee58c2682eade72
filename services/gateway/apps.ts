// The catalog over REST.
import type { FastifyInstance } from "fastify";
import { invalidField, StatusError } from "#libs/errors.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { type App, AppOrder } from "#proto/deputy/account/v1/apps.ts";
import { categoryNamesOf } from "./app-categories.ts";
import { appJson, pageJson } from "./json-shapes.ts";
import { callerCall, pageOf, pathParameter, queryOf, single } from "./requests.ts";

/** What is asked about apps. */
export type AppClient = Pick<Client<typeof AccountServiceDefinition>, "getApp" | "listApps">;

const orders: ReadonlyMap<string, AppOrder> = new Map([
  ["", AppOrder.UNSPECIFIED],
  ["name", AppOrder.NAME],
  ["name_slug", AppOrder.SLUG],
  ["featured_weight", AppOrder.FEATURED_WEIGHT],
]);

/** Adds the routes. */
export function addAppRoutes(app: FastifyInstance, account: AppClient): void {
  for (const prefix of ["/v1", "/v1/connect"]) {
    app.get(`${prefix}/apps`, async (request) => {
      const query = queryOf(request);
      const order = orders.get(single(query, "sort_key"));
      if (order === undefined) throw invalidField("sort_key", "must be name, name_slug or featured_weight");
      const list = {
        query: single(query, "q"),
        order,
        descending: single(query, "sort_direction") === "desc",
        categories: [...(await categoryNamesOf(account, query.getAll("category_ids"), callerCall(request)))],
        ...pageOf(query),
      };
      const page = await account.listApps(list, callerCall(request));
      return pageJson(page.apps.map(appJson), page);
    });
    app.get(`${prefix}/apps/:app_id`, async (request) => {
      const found = await account.getApp({ appSlug: pathParameter(request, "app_id") }, callerCall(request));
      if (found.app === undefined) throw new Error("GetApp answered without an app");
      return { data: appJson(found.app) };
    });
  }
}

/** The slug of an app that is named by slug or id; empty stays empty. */
export async function appSlugOf(account: AppClient, slugOrId: string, call: CallOptions): Promise<string> {
  if (!slugOrId.startsWith("app_")) return slugOrId;
  const { app } = await account.getApp({ appSlug: slugOrId }, call);
  return app?.slug ?? slugOrId;
}

/** The apps of a list of accounts, each asked for once. One that the catalog no longer has is known by its slug alone. */
export async function appsOf(
  account: AppClient,
  slugs: readonly string[],
  call: CallOptions,
): Promise<(slug: string) => App> {
  const found = new Map<string, App>();
  const find = async (slug: string) => {
    try {
      const { app } = await account.getApp({ appSlug: slug }, call);
      if (app !== undefined) found.set(slug, app);
    } catch (error) {
      if (!(error instanceof StatusError && error.code === "NOT_FOUND")) throw error;
    }
  };
  await Promise.all([...new Set(slugs)].map(find));
  return (slug) => found.get(slug) ?? appNoLongerListed(slug);
}

function appNoLongerListed(slug: string): App {
  return {
    id: "",
    slug,
    name: slug,
    description: "",
    authType: 0,
    imageUrl: "",
    categories: [],
    featuredWeight: 0,
    customFields: [],
    scopeProfiles: [],
    proxy: undefined,
    projectOwned: false,
  };
}
