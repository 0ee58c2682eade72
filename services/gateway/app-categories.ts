// Categories of apps over REST. The catalog's apps name theirs and nothing else is known of them, so a category's id follows from
// its name, and the list is read off the apps.
import type { FastifyInstance } from "fastify";
import { notFound } from "#libs/errors.ts";
import { digest } from "#libs/ids.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { callerCall, pathParameter } from "./requests.ts";

type Apps = Pick<Client<typeof AccountServiceDefinition>, "listApps">;

const pageSize = 1000;

/** Adds the routes. */
export function addAppCategoryRoutes(app: FastifyInstance, account: Apps): void {
  for (const prefix of ["/v1", "/v1/connect"]) {
    app.get(`${prefix}/app_categories`, async (request) => {
      const names = await listCategories(account, callerCall(request));
      return names.map(categoryJson);
    });
    app.get(`${prefix}/app_categories/:category_id`, async (request) => {
      const id = pathParameter(request, "category_id");
      const names = await listCategories(account, callerCall(request));
      const name = names.find((one) => categoryId(one) === id);
      if (name === undefined) throw notFound("app category");
      return categoryJson(name);
    });
  }
}

/** The names of categories that are given by id or by name. An id that none has stays, and matches nothing. */
export async function categoryNamesOf(
  account: Apps,
  given: readonly string[],
  call: CallOptions,
): Promise<readonly string[]> {
  if (!given.some((one) => one.startsWith("appcat_"))) return given;
  const names = await listCategories(account, call);
  return given.map((one) => names.find((name) => categoryId(name) === one) ?? one);
}

/** The names of all categories, each once, in the order of the alphabet. */
async function listCategories(account: Apps, call: CallOptions): Promise<readonly string[]> {
  const names = new Set<string>();
  let pageToken = "";
  do {
    const page = await account.listApps({ pageSize, pageToken }, call);
    for (const name of page.apps.flatMap(({ categories }) => categories)) names.add(name);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return [...names].sort((a, b) => a.localeCompare(b, "en"));
}

function categoryId(name: string): string {
  return `appcat_${digest(name).toString("hex").slice(0, 16)}`;
}

function categoryJson(name: string) {
  return { id: categoryId(name), name, description: null };
}
