// Tells a provider that a grant is over: one job of the outbox. The refresh token goes first, since with most providers it
// takes the whole grant along. The queue repeats what may pass; what the provider refuses for good, and what has not passed
// after seven days, is FAILED for ever, and the tokens are wiped all the same.
import type { Catalog } from "#libs/catalog.ts";
import { StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import { findOauthClientState, noteSecretTaken, type OauthClient, type OauthClientState } from "./oauth-clients.ts";
import { findAnyApp } from "./own-apps.ts";
import { isOauthApp } from "./provider.ts";
import type { ProviderAccess } from "./provider-http.ts";
import { type RevocationOutcome, revokeToken } from "./provider-revocation.ts";
import {
  clientMissing,
  confirmRevocation,
  failRevocation,
  findRevocation,
  noteRevocationError,
  openRevocation,
  type RevocationKey,
  type RevocationRow,
} from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";
import { deferRevocations, endsSiblings, settleDeferredRevocations } from "./shared-grants.ts";

/** What the job needs. */
export interface RevocationJobOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly providers: ProviderAccess;
  readonly log: Logger;
}

/** An attempt that failed and is to be repeated, not before so many seconds when the provider has named them. */
export class RevocationRetry extends Error {
  readonly waitSeconds: number;

  constructor(reason: string, waitSeconds: number) {
    super(reason);
    this.waitSeconds = waitSeconds;
  }
}

/** One attempt; throws to be repeated. */
export async function revoke(options: RevocationJobOptions, key: RevocationKey, isLast: boolean): Promise<void> {
  const { db, log } = options;
  const row = await findPending(options, key);
  if (row === undefined) return;
  const outcome = await tell(options, row).catch((failure: unknown): RevocationOutcome => {
    // A sealed vault, a record that does not open, fields that fit no endpoint: the attempts end here too.
    if (failure instanceof StatusError) return { kind: "retry", error: failure.reason };
    log.error({ revocationId: key.id, err: failure }, "a revocation met a fault of our own");
    return { kind: "retry", error: "INTERNAL" };
  });
  const { id, accountId, appSlug } = row;
  if (outcome.kind === "revoked") {
    await confirmRevocation(db, key, row.readTime);
    log.info({ revocationId: id, accountId, appSlug }, "revoked at the provider");
  } else {
    await noteRevocationError(db, key, outcome.error);
    log.warn({ revocationId: id, accountId, appSlug, error: outcome.error }, "the provider did not revoke");
    const isOver = outcome.kind === "refused" || isLast || row.expired;
    if (!isOver) throw new RevocationRetry(outcome.error, outcome.retryAfterSeconds ?? 0);
    await failRevocation(db, key);
  }
  if (await endsSiblings(options, row)) await settleDeferredRevocations(db, key.projectId);
}

/** The record, unless it has ended, or has siblings now: an account may have been connected since it was written. */
async function findPending({ db, catalog }: RevocationJobOptions, key: RevocationKey) {
  const row = await findRevocation(db, key);
  if (row === undefined || row.state !== "PENDING") return undefined;
  if (!(await endsSiblings({ db, catalog }, row))) return row;
  await deferRevocations(db, catalog, { projectId: row.projectId, accountIds: [row.accountId] });
  const now = await findRevocation(db, key);
  return now?.state === "PENDING" ? now : undefined;
}

/** Tells the provider of both tokens. */
async function tell(options: RevocationJobOptions, row: RevocationRow): Promise<RevocationOutcome> {
  const { db, secrets, providers } = options;
  const app = await findAnyApp(options, row);
  if (app === undefined || !isOauthApp(app)) return { kind: "retry", error: "APP_NOT_IN_CATALOG" };
  const value = await openRevocation(secrets, row);
  const found = await presentClient(options, row, value.client);
  // Before a client goes, what was taken over is sealed with it: as long as that is not done, the client just read is the right one.
  const now = value.client === undefined ? await findRevocation(db, row) : row;
  if (now?.state !== "PENDING") return { kind: "retry", error: "ENDED_MEANWHILE" };
  if (now.credentialGeneration !== row.credentialGeneration) return tell(options, now);
  const client = found?.client ?? value.client;
  if (client === undefined) return { kind: "refused", error: clientMissing };
  const context = { app, client, fields: value.fields };
  let refused: RevocationOutcome | undefined;
  for (const hint of ["refresh_token", "access_token"] as const) {
    const token = hint === "refresh_token" ? value.refreshToken : value.accessToken;
    if (token === undefined) continue;
    const outcome = await revokeToken(providers, context, { token, hint });
    if (outcome.kind === "retry") return outcome;
    if (outcome.kind === "revoked" && found !== undefined) {
      await noteSecretTaken(options, found, outcome.refusedSecrets);
    }
    // An access token that cannot be revoked by itself went with its refresh token.
    const isCovered = hint === "access_token" && value.refreshToken !== undefined && refused === undefined;
    if (outcome.kind === "refused" && !isCovered) refused = outcome;
  }
  return refused ?? { kind: "revoked", refusedSecrets: 0 };
}

/** The client that the project has, with the secrets of by now; undefined where that is not the record's own any more. */
async function presentClient(
  options: RevocationJobOptions,
  row: RevocationRow,
  sealed: OauthClient | undefined,
): Promise<OauthClientState | undefined> {
  try {
    const found = await findOauthClientState(options, { ...row, ...sealed });
    return sealed === undefined || found?.client.clientId === sealed.clientId ? found : undefined;
  } catch (error) {
    if (sealed !== undefined && error instanceof StatusError && error.code === "DATA_LOSS") return undefined;
    throw error;
  }
}
