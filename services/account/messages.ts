// Rows and catalog entries as the contract's messages.
import { Account, AccountHealth, AccountSharing, AccountState } from "#proto/deputy/account/v1/accounts.ts";
import { type App, type AppOverride, AuthType, type OauthApp } from "#proto/deputy/account/v1/apps.ts";
import type { AuditEntry as AuditEntryMessage } from "#proto/deputy/account/v1/audit.ts";
import { type Connection, ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { ApiClient, Project } from "#proto/deputy/account/v1/projects.ts";
import type { ExternalUser } from "#proto/deputy/account/v1/users.ts";
import type { Credential } from "#proto/deputy/vault/v1/credentials.ts";
import type { CredentialFacts } from "./accounts.ts";
import { appId } from "./app-choice.ts";
import type { AppOverride as OverrideRow } from "./app-overrides.ts";
import type { AuditEntry } from "./audit-entries.ts";
import type { CountedUser } from "./external-users.ts";
import type { KnownApp } from "./own-apps.ts";
import type { AccountRow, ApiClientRow, ConnectionRow, OauthAppRow, ProjectRow } from "./schema.ts";

/** What the vault says of a credential that it has stored, for the account's row: the watch (health.ts) goes on from there. */
export function credentialFacts(credential: Credential | undefined): CredentialFacts {
  return {
    credentialGeneration: credential === undefined ? null : Number(credential.generation),
    expireTime: credential?.expireTime ?? null,
    lastRefreshTime: credential?.lastRefreshTime ?? null,
    nextRefreshTime: credential?.nextRefreshTime ?? null,
    grantExpireTime: credential?.grantExpireTime ?? null,
    grantNoticeTime: credential?.grantNoticeTime ?? null,
  };
}

export function accountMessage(row: AccountRow): Account {
  return Account.fromPartial({
    id: row.id,
    projectId: row.projectId,
    environment: row.environment,
    externalUserId: row.externalUserId,
    appSlug: row.appSlug,
    oauthAppId: row.oauthAppId,
    name: row.name,
    state: AccountState[row.state],
    health: AccountHealth[row.health],
    error: row.error,
    authorizedScopes: [...row.authorizedScopes],
    ownerMemberId: row.ownerMemberId,
    sharing: AccountSharing[row.sharing],
    sharedMemberIds: [...row.sharedMemberIds],
    createTime: row.createTime,
    updateTime: row.updateTime,
    expireTime: row.expireTime ?? undefined,
    lastRefreshTime: row.lastRefreshTime ?? undefined,
    nextRefreshTime: row.nextRefreshTime ?? undefined,
  });
}

export function connectionMessage(row: ConnectionRow): Connection {
  return {
    id: row.id,
    state: ConnectionState[row.state],
    appSlug: row.appSlug,
    externalUserId: row.externalUserId,
    // An account that is not verified is none yet.
    accountId: row.state === "SUCCEEDED" ? row.accountId : "",
    error: row.error,
    createTime: row.createTime,
    expireTime: row.expireTime,
  };
}

export function projectMessage(row: ProjectRow): Project {
  return Project.fromPartial({
    id: row.id,
    name: row.name,
    appName: row.appName,
    supportEmail: row.supportEmail,
    requireKeyAuthTest: row.requireKeyAuthTest,
    createTime: row.createTime,
    updateTime: row.updateTime,
  });
}

export function apiClientMessage(row: ApiClientRow): ApiClient {
  return ApiClient.fromPartial({
    id: row.id,
    projectId: row.projectId,
    name: row.name,
    scopes: [...row.scopes],
    createTime: row.createTime,
    ...(row.previousSecretExpireTime !== null && { previousSecretExpireTime: row.previousSecretExpireTime }),
  });
}

export function userMessage({ id, externalUserId, createTime, accountCount }: CountedUser): ExternalUser {
  return { id, externalUserId, createTime, accountCount };
}

export function auditEntryMessage(row: AuditEntry): AuditEntryMessage {
  const { id, createTime, actor, action, resourceId, requestId, before, after } = row;
  return {
    ...{ id, createTime, actor, action, resourceId, requestId },
    before: before ?? undefined,
    after: after ?? undefined,
  };
}

export function oauthAppMessage(row: OauthAppRow, redirectUri: string): OauthApp {
  return {
    id: row.id,
    projectId: row.projectId,
    appSlug: row.appSlug,
    clientId: row.clientId,
    name: row.name,
    description: row.description,
    scopes: [...row.scopes],
    additionalScopes: [...row.additionalScopes],
    redirectUri,
    createTime: row.createTime,
    updateTime: row.updateTime,
  };
}

export function appOverrideMessage(row: OverrideRow): AppOverride {
  return {
    id: row.id,
    projectId: row.projectId,
    appSlug: row.appSlug,
    name: row.name,
    oauthAppId: row.oauthAppId ?? "",
    fields: { ...row.fields },
    createTime: row.createTime,
    updateTime: row.updateTime,
  };
}

const authTypes = { oauth2: AuthType.OAUTH, keys: AuthType.KEYS, none: AuthType.NONE } as const;

export function appMessage(app: KnownApp): App {
  return {
    id: appId(app),
    slug: app.slug,
    name: app.name,
    description: app.description,
    authType: authTypes[app.auth],
    imageUrl: app.image_url,
    categories: app.categories,
    featuredWeight: app.featured_weight,
    customFields: app.custom_fields.map((field) => ({
      name: field.name,
      label: field.label,
      description: field.description,
      defaultValue: field.default,
      optional: field.optional,
      secret: field.secret,
    })),
    scopeProfiles: app.oauth2?.scope_profiles ?? [],
    proxy: { enabled: app.proxy.enabled, allowedDomains: app.proxy.allowed_domains, baseUrl: app.proxy.base_url },
    projectOwned: app.projectOwned ?? false,
  };
}
