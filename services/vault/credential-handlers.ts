// The handlers of stored credentials: store, look, refresh, reveal, destroy.
import { type Catalog, type CatalogApp, fieldFaults } from "#libs/catalog.ts";
import { invalidField, notFound, StatusError } from "#libs/errors.ts";
import { within } from "#libs/patience.ts";
import type { Handlers } from "#libs/rpc.ts";
import type { SigningKey } from "#libs/signing-key.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { StoreCredentialRequest } from "#proto/deputy/vault/v1/credentials.ts";
import { actorOf } from "./audit-entries.ts";
import type { CallersFirst } from "./callers-first.ts";
import { listCredentialChanges } from "./credential-changes.ts";
import { changeMessage, credentialMessage, environmentName, receiptMessage } from "./credential-messages.ts";
import { type CredentialMaterial, credentialOwner, type GrantFacts, getCredential, readClock } from "./credentials.ts";
import { destroyCredentials } from "./destroy.ts";
import { eraseUser } from "./erase-user.ts";
import { factsOf, materialOf } from "./grants.ts";
import { requireUsable, shadowed } from "./lease.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import { findApp } from "./own-apps.ts";
import { isOauthApp } from "./provider.ts";
import type { Refresher } from "./refresh.ts";
import { isForcedTooSoon } from "./refresh-times.ts";
import { revealCredential } from "./reveal.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";
import { storeCredential } from "./store.ts";
import type { TryKeys } from "./try-keys.ts";

/** What the handlers of this file need. */
export interface CredentialHandlerOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly refresher: Refresher;
  readonly signals: LeaseSignals;
  readonly signingKey: SigningKey;
  readonly tryKeys: TryKeys;
  readonly callersFirst: CallersFirst;
}

const changesPerPage = 500;

type CredentialHandlers = Pick<
  Handlers<typeof CredentialVaultDefinition>,
  | "storeCredential"
  | "getCredential"
  | "listCredentialChanges"
  | "refreshCredential"
  | "revealCredential"
  | "destroyCredentials"
  | "eraseUser"
>;

/** The handlers over their collaborators. */
export function credentialHandlers(options: CredentialHandlerOptions): CredentialHandlers {
  const { db, secrets, catalog, refresher, tryKeys } = options;
  return {
    async storeCredential(request, call) {
      const { projectId, externalUserId, accountId, appSlug, oauthAppId } = request;
      const environment = environmentName(request.environment);
      const subject = { projectId, environment, externalUserId, accountId, appSlug, oauthAppId };
      const app = await findApp(options, subject);
      if (app === undefined) throw notFound("app");
      const { material, facts } = materialOfRequest(app, request, await readClock(db));
      if (request.test && !isOauthApp(app)) await tryKeys(app, material.fields);
      const key = await secrets.prepare(credentialOwner(subject));
      const ownApp = !catalog.has(appSlug);
      const by = { action: "credential.stored", actor: actorOf(call), ownApp } as const;
      const isStored = await db
        .transaction()
        .execute((transaction) => storeCredential(transaction, subject, { key, material, facts, ...by }));
      if (!isStored) {
        throw new StatusError("FAILED_PRECONDITION", "ACCOUNT_REVOKED", "The account takes no credential any more.");
      }
      return { credential: credentialMessage(await getCredential(db, subject)) };
    },

    async getCredential(request) {
      const { projectId, accountId } = request;
      const filter = { projectId, accountId, environment: environmentName(request.environment) };
      return { credential: credentialMessage(await getCredential(db, filter)) };
    },

    async listCredentialChanges({ pageSize, pageToken }) {
      const { rows, nextPageToken } = await listCredentialChanges(db, pageToken, pageSize || changesPerPage);
      return { changes: rows.map(changeMessage), nextPageToken };
    },

    async refreshCredential(request, call) {
      const { projectId, externalUserId, accountId, generation } = request;
      const filter = { projectId, externalUserId, accountId, environment: environmentName(request.environment) };
      const row = await getCredential(db, filter);
      requireUsable(row);
      if (row.shadow) throw shadowed();
      const isHeld = generation === 0n || generation === row.generation;
      const isTooSoon = call.caller.service === "proxy" && isForcedTooSoon(row);
      if (isHeld && !isTooSoon) await within(refresher.refresh(row), call);
      const after = await getCredential(db, filter);
      requireUsable(after);
      return { credential: credentialMessage(after), refreshed: after.generation > row.generation };
    },

    async revealCredential({ projectId, accountId, purpose, ...request }, call) {
      const filter = { projectId, accountId, environment: environmentName(request.environment) };
      const { row, values } = await revealCredential(options, filter, { purpose, actor: actorOf(call) });
      return { values: { ...values }, credential: credentialMessage(row) };
    },

    async destroyCredentials({ projectId, accountIds, revokeSharedGrant, ...request }, call) {
      const filter = { projectId, accountIds, environment: environmentName(request.environment) };
      const receipts = await destroyCredentials(options, { ...filter, revokeSharedGrant, actor: actorOf(call) });
      return { receipts: receipts.map(receiptMessage) };
    },

    async eraseUser({ projectId, externalUserId, pseudonym, ...request }, call) {
      const user = { projectId, externalUserId, pseudonym, environment: environmentName(request.environment) };
      return { destroyed: await eraseUser(options, { ...user, actor: actorOf(call) }) };
    },
  };
}

function materialOfRequest(
  app: CatalogApp,
  { oauthAppId, material }: StoreCredentialRequest,
  now: Date,
): { material: CredentialMaterial; facts: GrantFacts } {
  if (material === undefined) throw invalidField("material", "is required");
  if (material.$case === "fields") {
    if (isOauthApp(app)) throw invalidField("fields", "this app connects by OAuth: give a grant");
    const [fault] = fieldFaults(app.custom_fields, material.value.values, "fields.values");
    if (fault !== undefined) throw invalidField(fault.field, fault.description);
    const defaults = Object.fromEntries(app.custom_fields.map(({ name, default: value }) => [name, value]));
    return { material: { fields: { ...defaults, ...material.value.values } }, facts: { scopes: [] } };
  }
  if (!isOauthApp(app)) throw invalidField("grant", "this app connects by keys: give fields");
  const { accessToken, refreshToken, expireTime, scopes } = material.value;
  if (refreshToken !== "" && oauthAppId === "") throw invalidField("oauth_app_id", "is required with a refresh token");
  const grant = {
    accessToken,
    ...(refreshToken !== "" && { refreshToken }),
    ...(expireTime !== undefined && { lifetimeSeconds: (expireTime.getTime() - now.getTime()) / 1000 }),
  };
  return { material: materialOf(grant, {}), facts: factsOf(app, grant, scopes) };
}
