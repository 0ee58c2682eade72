// The JSON that existing clients expect, made from the services' messages: snake_case, ISO dates, null for what is absent.
import { type Account, AccountHealth } from "#proto/deputy/account/v1/accounts.ts";
import {
  type App,
  type AppOverride,
  AuthType,
  type CustomField,
  type OauthApp,
} from "#proto/deputy/account/v1/apps.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";

const authTypes: Readonly<Record<AuthType, string | null>> = {
  [AuthType.UNSPECIFIED]: null,
  [AuthType.OAUTH]: "oauth",
  [AuthType.KEYS]: "keys",
  [AuthType.NONE]: "none",
};

const environmentNames: Readonly<Record<Environment, string | null>> = {
  [Environment.UNSPECIFIED]: null,
  [Environment.DEVELOPMENT]: "development",
  [Environment.PRODUCTION]: "production",
};

/** An app. */
export function appJson(app: App) {
  const { proxy } = app;
  return {
    id: app.id || null,
    name_slug: app.slug,
    name: app.name,
    auth_type: authTypes[app.authType],
    description: app.description || null,
    img_src: app.imageUrl,
    // A text that holds JSON: so it is on the wire.
    custom_fields_json: JSON.stringify(app.customFields.map(customFieldJson)),
    categories: app.categories,
    featured_weight: app.featuredWeight,
    scope_profiles: app.scopeProfiles.map(({ name, scopes }) => ({ name, scopes })),
    connect: {
      proxy_enabled: proxy?.enabled ?? false,
      allowed_domains: proxy?.allowedDomains ?? [],
      base_proxy_target_url: proxy?.baseUrl ?? "",
    },
  };
}

function customFieldJson({ name, label, description, defaultValue, optional, secret }: CustomField) {
  return {
    name,
    label,
    description,
    default: defaultValue || null,
    optional,
    type: secret ? "password" : "string",
  };
}

/** An OAuth app: its app, with what the project says of it in place of what the catalog says. */
export function oauthAppJson(oauthApp: OauthApp, app: App) {
  const json = appJson(app);
  return {
    ...json,
    id: oauthApp.id,
    name: oauthApp.name || json.name,
    description: oauthApp.description || json.description,
    client_id: oauthApp.clientId,
    scopes: oauthApp.scopes,
    additional_scopes: oauthApp.additionalScopes,
    redirect_uri: oauthApp.redirectUri,
    owner_id: oauthApp.projectId,
    created_at: isoOrNull(oauthApp.createTime),
    updated_at: isoOrNull(oauthApp.updateTime),
  };
}

/** An app override with its app. */
export function appOverrideJson(override: AppOverride, app: App) {
  return {
    id: override.id,
    name: override.name,
    app: appJson(app),
    oauth_app_id: override.oauthAppId || null,
    cfmap: override.fields,
    owner_id: override.projectId,
    created_at: isoOrNull(override.createTime),
    updated_at: isoOrNull(override.updateTime),
  };
}

/** An account with its app. In an account made with a project's OAuth app, the app's id is that one's. */
export function accountJson(account: Account, app: App) {
  const { oauthAppId, health } = account;
  return {
    id: account.id,
    name: account.name || null,
    external_id: account.externalUserId,
    healthy: health === AccountHealth.HEALTHY,
    dead: health === AccountHealth.DEAD,
    app: { ...appJson(app), ...(oauthAppId !== "" && { id: oauthAppId }) },
    created_at: isoOrNull(account.createTime),
    updated_at: isoOrNull(account.updateTime),
    authorized_scopes: account.authorizedScopes,
    expires_at: isoOrNull(account.expireTime),
    error: account.error || null,
    last_refreshed_at: isoOrNull(account.lastRefreshTime),
    next_refresh_at: isoOrNull(account.nextRefreshTime),
  };
}

/** A page of a list. `end_cursor` is null on the last one: clients go on for as long as there is one. */
export function pageJson<T>(data: readonly T[], page: { readonly nextPageToken: string; readonly totalSize: number }) {
  return {
    data,
    page_info: {
      count: data.length,
      total_count: page.totalSize,
      start_cursor: null,
      end_cursor: page.nextPageToken || null,
    },
  };
}

/** `development` or `production`. */
export function environmentJson(environment: Environment): string | null {
  return environmentNames[environment];
}

/** An ISO date. */
export function isoOrNull(time: Date | undefined): string | null {
  return time?.toISOString() ?? null;
}
