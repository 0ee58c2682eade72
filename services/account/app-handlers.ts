// The apps that a caller may know of: those of the catalog, and the own ones of its project.
import type { Catalog, CatalogApp } from "#libs/catalog.ts";
import { invalidField } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import { type App, AppOrder, type ListAppsRequest } from "#proto/deputy/account/v1/apps.ts";
import { getNamedApp } from "./app-choice.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { appMessage } from "./messages.ts";
import type { CatalogOf } from "./own-apps.ts";

export function appHandlers({
  catalog,
  catalogOf,
}: {
  catalog: Catalog;
  catalogOf: CatalogOf;
}): HandlerGroup<"getApp" | "listApps"> {
  /** A project's own apps are for those who hold a token of it, and for the operator. */
  function catalogFor({ caller }: Call, projectId: string | undefined): Promise<Catalog> | Catalog {
    const known = caller.token?.projectId ?? (caller.service === "operator" ? projectId : undefined);
    return known === undefined ? catalog : catalogOf(known);
  }

  return {
    async getApp({ projectId, appSlug }, call) {
      return { app: appMessage(getNamedApp(await catalogFor(call, projectId), appSlug)) };
    },
    async listApps(request, call) {
      return pageOfApps(await catalogFor(call, request.projectId), request);
    },
  };
}

type Compare = (a: CatalogApp, b: CatalogApp) => number;
const bySlug: Compare = (a, b) => (a.slug < b.slug ? -1 : a.slug > b.slug ? 1 : 0);
const byName: Compare = (a, b) => a.name.localeCompare(b.name, "en") || bySlug(a, b);
const byWeight: Compare = (a, b) => a.featured_weight - b.featured_weight || bySlug(a, b);
const featured: Compare = (a, b) => b.featured_weight - a.featured_weight || bySlug(a, b);

const orders: Readonly<Record<AppOrder, Compare>> = {
  [AppOrder.UNSPECIFIED]: featured,
  [AppOrder.NAME]: byName,
  [AppOrder.SLUG]: bySlug,
  [AppOrder.FEATURED_WEIGHT]: byWeight,
};

/** The slug of a page's last app says where the next one begins; when that app is gone, the list begins anew. */
function pageOfApps(
  catalog: Catalog,
  { query, categories, order, descending, pageSize, pageToken }: ListAppsRequest,
): { apps: App[]; nextPageToken: string; totalSize: number } {
  const text = query.toLowerCase();
  const apps = [...catalog.values()]
    .filter(({ name, slug }) => name.toLowerCase().includes(text) || slug.includes(text))
    .filter((app) => categories.length === 0 || categories.some((category) => app.categories.includes(category)))
    .sort(orders[order]);
  if (descending) apps.reverse();
  const lastSlug = Buffer.from(pageToken, "base64url").toString();
  const start = pageToken === "" ? 0 : apps.findIndex(({ slug }) => slug === lastSlug) + 1;
  if (pageToken !== "" && start === 0) throw invalidField("page_token", "is not one that this list gave");
  const page = apps.slice(start, start + (pageSize || 100));
  const last = page.at(-1);
  const isLast = last === undefined || start + page.length >= apps.length;
  const nextPageToken = isLast ? "" : Buffer.from(last.slug).toString("base64url");
  return { apps: page.map(appMessage), nextPageToken, totalSize: apps.length };
}
