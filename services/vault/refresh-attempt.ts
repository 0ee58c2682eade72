// One attempt of a refresh by the holder of the account's lock: INTENT, SEND, RECORD. The argument is in refresh.ts.
import type { Catalog } from "#libs/catalog.ts";
import { newId } from "#libs/ids.ts";
import type { Logger } from "#libs/log.ts";
import { admitRefresh, closeBreaker } from "./client-breaker.ts";
import type { PassPoint } from "./crash-points.ts";
import {
  type CredentialKey,
  type CredentialMaterial,
  type CredentialRow,
  credentialOwner,
  findCredential,
} from "./credentials.ts";
import { factsOf, materialOf } from "./grants.ts";
import { findOauthClientState, noteSecretTaken, type OauthClientState } from "./oauth-clients.ts";
import { findApp } from "./own-apps.ts";
import { isOauthApp, type OauthApp, type ProviderContext, refreshGrant, type TokenAttempt } from "./provider.ts";
import type { ProviderAccess } from "./provider-http.ts";
import { noteFailure, noteWaiting } from "./refresh-failure.ts";
import type { RefreshNotices } from "./refresh-notices.ts";
import { beginRefresh, type Intent, recordFailure } from "./refresh-records.ts";
import { storeRefresh } from "./refresh-store.ts";
import { isValid } from "./refresh-times.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";
import type { Spool } from "./spool.ts";

/** What came of a refresh. Callers read the row again: it says the rest. */
export type RefreshOutcome =
  | { readonly kind: "refreshed" }
  /** Somebody else had refreshed it. */
  | { readonly kind: "current" }
  /** It may pass by itself; not before the row's `retryTime`. */
  | { readonly kind: "failing" }
  /** Only the user can mend it, or there is nothing to refresh with. */
  | { readonly kind: "unusable" }
  /** Another process is at it and did not end in time. */
  | { readonly kind: "busy" };

/** What attempts are made with. */
export interface AttemptOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly providers: ProviderAccess;
  readonly log: Logger;
  /** Keeps what the database does not take at once; without one it is kept in memory alone. */
  readonly spool: Spool | undefined;
  readonly unguardedApps: readonly string[];
  /** Tells those who hold leases. */
  readonly refreshes: Pick<RefreshNotices, "tell">;
  readonly passPoint: PassPoint;
}

/** Tries once, unless the row has left `generation`. */
export async function attemptRefresh(
  options: AttemptOptions,
  key: CredentialKey & { readonly generation: bigint },
  processId: string,
): Promise<RefreshOutcome> {
  const { db, secrets, passPoint } = options;
  const row = await findCredential(db, key);
  const app = row && (await findApp(options, row));
  if (row === undefined || row.blob === null || app === undefined || !isOauthApp(app)) return { kind: "unusable" };
  if (row.generation !== key.generation) return { kind: "current" };
  // Everything that can be missing or unreadable is fetched before the intent is written and the grant is spent.
  const owner = credentialOwner(row);
  const dataKey = await secrets.keyOf(owner, row);
  const { refreshToken, fields } = await secrets.open<CredentialMaterial>(owner, row);
  if (refreshToken === undefined && isValid(row)) return { kind: "unusable" };
  const found = await findOauthClientState(options, row);
  const intent: Intent = { id: newId("int"), by: processId };
  passPoint("locked");
  const begun = await beginRefresh(db, key, { generation: row.generation, intent, strict: worksOnce(app) });
  if (begun.kind === "backoff" || begun.kind === "lost") return { kind: "failing" };
  if (begun.kind !== "intended") return begun;
  passPoint("intended");
  const failed = { app, row: begun.row, intent, isProbe: false, elapsedMs: 0 };
  if (refreshToken === undefined) {
    await recordFailure(db, row, intent, { state: "NEEDS_REAUTH", reason: "NO_REFRESH_TOKEN" });
    return { kind: "unusable" };
  }
  if (found === undefined) {
    return noteFailure(options, { ...failed, outcome: { kind: "client_rejected", error: "OAUTH_CLIENT_MISSING" } });
  }
  const admission = await admitRefresh(db, row, found.row.probeTime);
  if (admission.kind === "refused") return noteWaiting(options, failed, admission.waitSeconds);
  const isProbe = admission.kind === "probe";
  const { client } = found;
  const { outcome, elapsedMs } = await send(options.providers, { app, client, fields }, refreshToken);
  passPoint("answered");
  if (outcome.kind === "granted") {
    // A provider that gives no new refresh token leaves the old one good. Times count from before the request: the
    // provider's clock began later, so the token ends no earlier than noted.
    const grant = { refreshToken, ...outcome.grant };
    const since = begun.row.readTime;
    const ageSeconds = (since.getTime() - row.grantTime.getTime()) / 1000;
    const facts = { ...factsOf(app, grant, row.scopes, ageSeconds), since };
    const material = materialOf(grant, fields);
    const revoker = app.oauth2.revoke && client;
    const stored = await storeRefresh(
      options,
      { ...subjectOf(row, intent), facts, material, ...(revoker && { revoker }) },
      dataKey,
    );
    if (stored.kind === "refreshed") {
      options.refreshes.tell({ ...key, accessEnded: app.lifecycle.access_dies_on_refresh });
    }
    await noteClientTaken(options, row, { found, outcome, isProbe });
    return stored;
  }
  if (outcome.kind === "rejected") await noteClientTaken(options, row, { found, outcome, isProbe });
  return noteFailure(options, { ...failed, outcome, isProbe, elapsedMs });
}

/** Whether a refresh token that was sent must not be sent again, not even at once. */
function worksOnce({ lifecycle }: OauthApp): boolean {
  return lifecycle.rotation === "strict" && lifecycle.reuse_grace_seconds === 0;
}

/** Spends the refresh token; once more at once when the answer was lost and the provider lets a token be used again. */
async function send(
  providers: ProviderAccess,
  context: ProviderContext,
  refreshToken: string,
): Promise<{ outcome: TokenAttempt; elapsedMs: number }> {
  const { rotation, reuse_grace_seconds: grace } = context.app.lifecycle;
  const startMs = performance.now();
  const elapsed = () => performance.now() - startMs;
  const outcome = await refreshGrant(providers, context, refreshToken);
  const again = outcome.kind === "unknown" && (rotation === "none" || elapsed() < grace * 1000);
  return {
    outcome: again ? await refreshGrant(providers, context, refreshToken) : outcome,
    elapsedMs: elapsed(),
  };
}

function subjectOf(row: CredentialRow, { id: intentId }: Intent) {
  const { projectId, environment, externalUserId, accountId, appSlug, generation } = row;
  return { subject: { projectId, environment, externalUserId, accountId, appSlug }, generation, intentId };
}

/** The provider spoke of the grant, so it takes the client: with which secret, and again after it had not. */
async function noteClientTaken(
  { db, log }: AttemptOptions,
  { projectId, oauthAppId, appSlug }: CredentialRow,
  taken: {
    readonly found: OauthClientState;
    readonly outcome: TokenAttempt;
    readonly isProbe: boolean;
  },
): Promise<void> {
  const key = { projectId, oauthAppId };
  await noteSecretTaken({ db, log }, taken.found, taken.outcome.refusedSecrets);
  if (!taken.isProbe) return;
  try {
    await closeBreaker(db, key);
    log.info({ ...key, appSlug }, "an OAuth client is taken again: its breaker is closed");
  } catch (error) {
    // The account has its token; what is not noted now is noted by the next refresh.
    log.warn({ ...key, appSlug, err: error }, "what was learned of an OAuth client could not be noted");
  }
}
