// Which app, which OAuth app and which scopes a connection is made with, judged by the catalog, the request and the connect
// token that the request came with.
import { type Catalog, type CatalogApp, fieldFaults, getApp } from "#libs/catalog.ts";
import { invalidField, invalidFields } from "#libs/errors.ts";
import { digest } from "#libs/ids.ts";
import { expandBaseUrl } from "#libs/templates.ts";
import type { ConnectTokenRow, OauthAppRow } from "./schema.ts";

/** The app that a request names: by its slug, or by its id. */
export function getNamedApp(catalog: Catalog, slugOrId: string): CatalogApp {
  const byId = catalog.has(slugOrId) ? undefined : [...catalog.values()].find((app) => appId(app) === slugOrId);
  return byId ?? getApp(catalog, slugOrId);
}

/** The id of a catalog entry follows from its slug: the catalog needs no table of ids, and every process has the same. */
export function appId(app: CatalogApp): string {
  return `app_${digest(app.slug).toString("hex").slice(0, 16)}`;
}

/** The app asked for, else the connect token's; a token that names an app connects no other. */
export function chooseApp(
  catalog: Catalog,
  asked: string,
  token: Pick<ConnectTokenRow, "appSlug"> | undefined,
): CatalogApp {
  const bound = token?.appSlug ?? "";
  if (asked === "" && bound === "") throw invalidField("app_slug", "is required");
  const app = getNamedApp(catalog, asked || bound);
  if (bound !== "" && app.slug !== bound)
    throw invalidField("app_slug", "is not the app that the connect token is for");
  return app;
}

/**
 * The id of the OAuth app asked for, else the connect token's or the app override's; empty when none names one. Throws when two
 * of them name different ones.
 */
export function chooseOauthAppId(
  asked: string,
  token: Pick<ConnectTokenRow, "oauthAppId"> | undefined,
  override?: { readonly oauthAppId: string },
): string {
  const bound = chooseOne(asked, token?.oauthAppId, "is not the OAuth app that the connect token is for");
  return chooseOne(bound, override?.oauthAppId, "is not the OAuth app that the app override chooses");
}

function chooseOne(asked: string, bound = "", conflict: string): string {
  if (asked !== "" && bound !== "" && asked !== bound) throw invalidField("oauth_app_id", conflict);
  return asked || bound;
}

/** The scopes to ask the provider for: a profile's, else the OAuth app's, else the app's; and the additional ones. */
export function chooseScopes(app: CatalogApp, oauthApp: OauthAppRow, profileName: string): readonly string[] {
  const profile = app.oauth2?.scope_profiles.find(({ name }) => name === profileName);
  if (profileName !== "" && profile === undefined) {
    throw invalidField("scope_profile", `is not one of this app: ${scopeProfileNames(app)}`);
  }
  const own = oauthApp.scopes.length > 0 ? oauthApp.scopes : (app.oauth2?.scopes ?? []);
  return [...new Set([...(profile?.scopes ?? own), ...oauthApp.additionalScopes])];
}

function scopeProfileNames(app: CatalogApp): string {
  return app.oauth2?.scope_profiles.map(({ name }) => name).join(", ") || "it has none";
}

/**
 * The app's fields with the values given and the defaults for the rest, as they are to be sealed. Throws INVALID_ARGUMENT
 * for each that the app does not allow; repeats no value, nor the name of a field that the app does not have.
 */
export function completeFields(
  fields: CatalogApp["custom_fields"],
  values: Readonly<Record<string, string>>,
): Readonly<Record<string, string>> {
  const violations = fieldFaults(fields, values, "fields");
  if (violations.length > 0) throw invalidFields(violations);
  const complete = fields.map(({ name, default: value }) => [name, values[name] || value] as const);
  return Object.fromEntries(complete.filter(([, value]) => value !== ""));
}

/** Refuses values with which the app's base URL is none, before they are sealed. */
export function checkBaseUrl(app: CatalogApp, values: Readonly<Record<string, string>>): void {
  if (!app.proxy.enabled) return;
  const base = expandBaseUrl(app.proxy.base_url, values);
  if (base.kind === "deny") throw invalidField("fields", base.message);
}
