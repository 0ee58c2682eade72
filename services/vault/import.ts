// Import of one record: judged like a credential that comes through the API, then sealed under this vault's own keys. What is
// live here is never overwritten: an old export must not put a spent refresh token in the place of a good one. Replaced are
// shadowed credentials, those whose user would have to connect again, those that cannot be refreshed or opened; a repeat of
// what is stored changes nothing. A shadowed credential is leased while it is valid and never refreshed, because the system
// that it comes from still refreshes it; it is cut over by importing it again without `shadow`.
import { type Catalog, type CatalogApp, fieldFaults } from "#libs/catalog.ts";
import { invalidField, StatusError } from "#libs/errors.ts";
import type { Actor } from "./audit-entries.ts";
import type { CredentialRecord } from "./credential-record.ts";
import {
  type CredentialMaterial,
  type CredentialRow,
  credentialOwner,
  findCredential,
  type GrantFacts,
  lockCredential,
} from "./credentials.ts";
import { factsOf } from "./grants.ts";
import { hasOauthClient } from "./oauth-clients.ts";
import { findApp } from "./own-apps.ts";
import { isOauthApp } from "./provider.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";
import { type CredentialSubject, storeCredential } from "./store.ts";

/** What an import needs. */
export interface ImportOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
}

/** Stores one record; INVALID_ARGUMENT naming the field when it is refused. */
export async function importCredential(
  options: ImportOptions,
  record: CredentialRecord,
  { shadow, actor }: { readonly shadow: boolean; readonly actor: Actor },
): Promise<void> {
  const subject: CredentialSubject = {
    projectId: record.project_id,
    environment: record.environment,
    externalUserId: record.external_user_id,
    accountId: record.account_id,
    appSlug: record.app_slug,
    oauthAppId: record.oauth_app_id,
  };
  const app = await findApp(options, subject);
  if (app === undefined) throw invalidField("app_slug", "is neither in this vault's catalog nor an app of the project");
  const { material, facts } = judge(app, record, shadow);
  if (material.refreshToken !== undefined && !(await hasOauthClient(options.db, subject))) {
    throw invalidField("oauth_app_id", "is not an OAuth client of this project and app: put it in first");
  }
  // By its key alone: what belongs to somebody else is not absent here, but in the way.
  const { projectId, accountId } = subject;
  const existing = await findCredential(options.db, { projectId, accountId });
  if (existing !== undefined && (await isStoredAlready(options, existing, { subject, material, shadow }))) return;
  const key = await options.secrets.prepare(credentialOwner(subject));
  const reason = shadow ? "SHADOW" : existing?.shadow ? "CUT_OVER" : "";
  const ownApp = !options.catalog.has(subject.appSlug);
  const by = { action: "credential.imported", actor, reason, ownApp } as const;
  const isStored = await options.db.transaction().execute(async (transaction) => {
    const now = await lockCredential(transaction, subject);
    if (now?.generation !== existing?.generation || now?.state !== existing?.state) return false;
    return storeCredential(transaction, subject, { key, material, facts, ...by });
  });
  if (!isStored) throw invalidField("account_id", "changed meanwhile: send the record again");
}

/** Whether there is nothing to do; throws when what is there must not be replaced. */
async function isStoredAlready(
  { secrets }: ImportOptions,
  existing: CredentialRow,
  { subject, material, shadow }: { subject: CredentialSubject; material: CredentialMaterial; shadow: boolean },
): Promise<boolean> {
  const { environment, externalUserId, appSlug } = subject;
  if (existing.state === "REVOKED") throw invalidField("account_id", "was revoked here, for good");
  if (
    existing.environment !== environment ||
    existing.externalUserId !== externalUserId ||
    existing.appSlug !== appSlug
  ) {
    throw invalidField("account_id", "belongs to another environment, user or app here");
  }
  if (existing.shadow || existing.state === "NEEDS_REAUTH") return false;
  const stored = await secrets.open<CredentialMaterial>(credentialOwner(existing), existing).catch((error: unknown) => {
    if (error instanceof StatusError && error.code === "DATA_LOSS") return undefined;
    throw error;
  });
  if (stored === undefined || (stored.accessToken !== undefined && stored.refreshToken === undefined)) return false;
  if (!shadow && isSame(stored, material)) return true;
  throw invalidField("account_id", "has a live credential here, which an import does not replace");
}

function isSame(one: CredentialMaterial, other: CredentialMaterial): boolean {
  const text = ({ accessToken, refreshToken, fields }: CredentialMaterial) =>
    JSON.stringify([accessToken, refreshToken, Object.entries(fields).sort()]);
  return text(one) === text(other);
}

function judge(
  app: CatalogApp,
  record: CredentialRecord,
  shadow: boolean,
): { material: CredentialMaterial; facts: GrantFacts } {
  const [fault] = fieldFaults(app.custom_fields, record.fields, "fields");
  if (fault !== undefined) throw invalidField(fault.field, fault.description);
  const defaults = Object.fromEntries(app.custom_fields.map(({ name, default: value }) => [name, value]));
  const fields = { ...defaults, ...record.fields };
  const { access_token: accessToken, refresh_token: refreshToken, expire_time: expireTime } = record;
  if (!isOauthApp(app)) {
    if (accessToken ?? refreshToken) throw invalidField("access_token", "this app connects by keys: give fields");
    return { material: { fields }, facts: { scopes: record.scopes, shadow } };
  }
  if (accessToken === undefined && (refreshToken === undefined || shadow))
    throw invalidField("access_token", "is required");
  const lifetimeSeconds =
    // Due at once: the first lease fetches an access token.
    accessToken === undefined ? 0 : expireTime && (Date.parse(expireTime) - Date.now()) / 1000;
  const tokens = {
    ...(accessToken !== undefined && { accessToken }),
    ...(refreshToken !== undefined && { refreshToken }),
  };
  const lifetime = typeof lifetimeSeconds === "number" ? { lifetimeSeconds } : {};
  // Of what another system refreshes nothing but this token's end is known.
  const facts = shadow
    ? { scopes: record.scopes, shadow, ...lifetime }
    : factsOf(app, { ...tokens, ...lifetime }, record.scopes);
  return { material: { ...tokens, fields }, facts };
}
