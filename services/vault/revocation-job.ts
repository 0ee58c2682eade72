// Tells a provider that a grant is over (RFC 7009): one job of the outbox. The refresh token goes first, since with most
// providers it takes the whole grant along. The queue repeats what fails; after seven days the record says FAILED, for ever,
// and the tokens are wiped all the same.
import type { Catalog } from "#libs/catalog.ts";
import { StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import { findOauthClientState, noteSecretTaken, type OauthClient, type OauthClientState } from "./oauth-clients.ts";
import { isOauthApp, revokeToken } from "./provider.ts";
import type { ProviderAccess } from "./provider-http.ts";
import {
  completeRevocation,
  findRevocation,
  noteRevocationError,
  type RevocationRow,
  type RevocationSecrets,
  revocationOwner,
} from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";

/** What the job needs. */
export interface RevocationJobOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly providers: ProviderAccess;
  readonly log: Logger;
}

/** One attempt; throws to be repeated. */
export async function revoke(
  options: RevocationJobOptions,
  key: { readonly projectId: string; readonly id: string },
  isLast: boolean,
): Promise<void> {
  const { db, log } = options;
  const row = await findRevocation(db, key);
  if (row === undefined || row.state !== "PENDING") return;
  const error = await tell(options, row).catch((failure: unknown) => {
    // A sealed vault, a record that does not open, fields that fit no endpoint: the attempts end here too.
    if (failure instanceof StatusError) return failure.reason;
    log.error({ revocationId: key.id, err: failure }, "a revocation met a fault of our own");
    return "INTERNAL";
  });
  const { id, accountId, appSlug } = row;
  if (error === undefined) {
    await completeRevocation(db, key, "DONE");
    log.info({ revocationId: id, accountId, appSlug }, "revoked at the provider");
    return;
  }
  await noteRevocationError(db, key, error);
  log.warn({ revocationId: id, accountId, appSlug, error }, "the provider did not revoke");
  if (!isLast && !row.expired) throw new Error(error);
  await completeRevocation(db, key, "FAILED");
}

/** Tells the provider of both tokens; gives why it could not, by a stable name. */
async function tell(options: RevocationJobOptions, row: RevocationRow) {
  const { secrets, catalog, providers } = options;
  const app = catalog.get(row.appSlug);
  if (app === undefined || !isOauthApp(app)) return "APP_NOT_IN_CATALOG";
  const value = await secrets.open<RevocationSecrets>(revocationOwner(row), { ...row, generation: 0n });
  const found = await presentClient(options, row, value.client);
  const context = { app, client: found?.client ?? value.client, fields: value.fields };
  for (const hint of ["refresh_token", "access_token"] as const) {
    const token = hint === "refresh_token" ? value.refreshToken : value.accessToken;
    if (token === undefined) continue;
    const outcome = await revokeToken(providers, context, { token, hint });
    if (outcome.kind === "retry") return outcome.error;
    if (outcome.kind === "revoked" && found !== undefined) {
      await noteSecretTaken(options, found, outcome.refusedSecrets);
    }
    // An access token that cannot be revoked by itself went with its refresh token.
    const isCovered = hint === "access_token" && value.refreshToken !== undefined;
    if (outcome.kind === "unsupported" && !isCovered) return "REVOCATION_UNSUPPORTED";
  }
  return undefined;
}

/** The record's client with the secrets that it has by now; undefined where it is gone, and those of the record are what there is. */
async function presentClient(
  options: RevocationJobOptions,
  { projectId, appSlug }: RevocationRow,
  { oauthAppId, clientId }: OauthClient,
): Promise<OauthClientState | undefined> {
  try {
    const found = await findOauthClientState(options, { projectId, oauthAppId, appSlug });
    return found?.client.clientId === clientId ? found : undefined;
  } catch (error) {
    if (error instanceof StatusError && error.code === "DATA_LOSS") return undefined;
    throw error;
  }
}
