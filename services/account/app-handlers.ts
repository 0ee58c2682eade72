// The apps that a caller may know of, and the projects' own OAuth apps for them.
import type { Catalog, CatalogApp } from "#libs/catalog.ts";
import { invalidField } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import { type App, AppOrder, type ListAppsRequest } from "#proto/deputy/account/v1/apps.ts";
import { getNamedApp } from "./app-choice.ts";
import { type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { appMessage, oauthAppMessage } from "./messages.ts";
import { getOauthApp, insertOauthApp, listOauthApps } from "./oauth-apps.ts";
import type { CatalogOf } from "./own-apps.ts";
import { requestedPage } from "./pages.ts";
import { getProject } from "./projects.ts";
import type { AccountDatabase } from "./schema.ts";

type Methods = "getApp" | "listApps" | "createOauthApp" | "getOauthApp" | "listOauthApps";

export function appHandlers(
  {
    db,
    vault,
    catalog,
    catalogOf,
    redirectUri,
  }: {
    db: AccountDatabase;
    vault: Pick<Vault, "putOauthClient">;
    catalog: Catalog;
    catalogOf: CatalogOf;
    redirectUri: string;
  },
  now: () => number,
): HandlerGroup<Methods> {
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
    async createOauthApp(request, call) {
      const { projectId, clientId, clientSecret, name, description, scopes, additionalScopes } = request;
      const app = getNamedApp(await catalogOf(projectId), request.appSlug);
      if (app.auth !== "oauth2") throw invalidField("app_slug", "is an app without OAuth");
      await getProject(db, projectId);
      const oauthAppId = newId("oa");
      const clientSecrets = clientSecret === "" ? [] : [clientSecret];
      await vault.putOauthClient({ projectId, oauthAppId, appSlug: app.slug, clientId, clientSecrets }, ownRight(call));
      const time = new Date(now());
      const row = await insertOauthApp(db, {
        projectId,
        id: oauthAppId,
        appSlug: app.slug,
        clientId,
        name,
        description,
        scopes,
        additionalScopes,
        createTime: time,
        updateTime: time,
      });
      return { oauthApp: oauthAppMessage(row, redirectUri) };
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
