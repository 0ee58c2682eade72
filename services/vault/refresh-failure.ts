// What a refresh that brought no token does to its account. A refusal of the grant marks it dead, unless it was a race or
// would be one of too many (blast-radius.ts); a refusal of the OAuth client opens that client's breaker and marks nobody;
// a lost answer makes it UNKNOWN; everything else passes by itself. All but the first are tried again after a pause.
import type { Logger } from "#libs/log.ts";
import { recordRefusal } from "./blast-radius.ts";
import { openBreaker } from "./client-breaker.ts";
import type { CredentialRow } from "./credentials.ts";
import type { OauthApp } from "./provider.ts";
import { type Intent, recordFailure } from "./refresh-records.ts";
import { backoffAfter, lostGrantWait } from "./refresh-times.ts";
import type { VaultDatabase } from "./schema.ts";
import type { TokenOutcome } from "./token-answers.ts";

/** What noting a failure needs. */
export interface FailureOptions {
  readonly db: VaultDatabase;
  readonly log: Logger;
  /** Apps of which the operator lets any number of accounts be marked dead. */
  readonly unguardedApps: readonly string[];
}

/** An attempt that failed. */
export interface FailedRefresh {
  readonly app: OauthApp;
  /** As the intent found it. */
  readonly row: CredentialRow;
  readonly intent: Intent;
  readonly isProbe: boolean;
  /** Since the refresh token was sent first. */
  readonly elapsedMs: number;
  readonly outcome: Exclude<TokenOutcome, { readonly kind: "granted" }>;
}

/** What became of the account. */
export interface FailureOutcome {
  readonly kind: "failing" | "current" | "unusable";
}

/** Notes it on the row. */
export async function noteFailure(options: FailureOptions, failed: FailedRefresh): Promise<FailureOutcome> {
  const { db, log } = options;
  const { row, intent, outcome } = failed;
  const { accountId, appSlug } = row;
  log.warn({ accountId, appSlug, outcome: outcome.kind, error: outcome.error }, "refresh failed");
  if (outcome.kind === "rejected") return noteRefusal(options, failed);
  const pause = backoffAfter(
    row.failures + 1,
    Math.random,
    outcome.kind === "retry" ? outcome.retryAfterSeconds : undefined,
  );
  switch (outcome.kind) {
    case "client_rejected":
      await noteClientRefused(options, failed);
      return note(db, row, intent, { state: stateOf(row), reason: "OAUTH_CLIENT_REJECTED", retrySeconds: pause });
    case "unknown": {
      const retrySeconds = canRepeat(failed, pause) ? pause : Math.max(pause, lostGrantWait(row));
      return note(db, row, intent, { state: "UNKNOWN", reason: "ANSWER_LOST", retrySeconds });
    }
    case "retry":
      return note(db, row, intent, { state: stateOf(row), reason: "PROVIDER_FAILING", retrySeconds: pause });
  }
}

/** Notes that nothing was sent, because the client's breaker is open: the row waits for as long as the breaker does. */
export function noteWaiting(
  { db }: FailureOptions,
  { row, intent }: Pick<FailedRefresh, "row" | "intent">,
  waitSeconds: number,
): Promise<FailureOutcome> {
  // Spread, so that not all of them ask at the moment of the probe.
  const retrySeconds = waitSeconds + 5 * Math.random();
  return note(db, row, intent, { state: stateOf(row), reason: "OAUTH_CLIENT_REJECTED", retrySeconds });
}

async function noteRefusal(
  { db, log, unguardedApps }: FailureOptions,
  { row, intent, outcome }: FailedRefresh,
): Promise<FailureOutcome> {
  const { projectId, accountId, appSlug } = row;
  // After a lost answer the refusal is ours to answer for: the grant moved on, and what it became was lost.
  const isLost = row.state === "UNKNOWN" || row.intentId !== null;
  const reason = isLost ? "GRANT_LOST" : outcome.error === "invalid_grant" ? "INVALID_GRANT" : "GRANT_REFUSED";
  const retrySeconds = backoffAfter(row.failures + 1, Math.random);
  const guarded = !unguardedApps.includes(appSlug);
  switch (await recordRefusal(db, row, intent, { reason, retrySeconds, guarded })) {
    case "dead":
      log.warn({ projectId, accountId, appSlug, reason }, "an account needs its user");
      return { kind: "unusable" };
    case "held":
      log.error(
        { projectId, accountId, appSlug },
        "too many grants of an app were refused at once: the account is kept",
      );
      return { kind: "failing" };
    case "moved":
      // The refusal was of an older token, and nobody is the worse.
      return { kind: "current" };
  }
}

async function noteClientRefused({ db, log }: FailureOptions, { row, isProbe }: FailedRefresh): Promise<void> {
  const { projectId, oauthAppId, appSlug } = row;
  if (await openBreaker(db, row, isProbe)) {
    log.error({ projectId, oauthAppId, appSlug }, "an OAuth client is refused by its provider: its breaker is open");
  }
}

/** Whether the token that was sent may be sent once more after the pause, by the provider's own rules. */
function canRepeat({ app, row, elapsedMs }: FailedRefresh, pauseSeconds: number): boolean {
  const { rotation, reuse_grace_seconds: grace } = app.lifecycle;
  // A row that is UNKNOWN already has used its grace up.
  return rotation === "none" || (row.state !== "UNKNOWN" && elapsedMs / 1000 + pauseSeconds < grace);
}

/** What is not known does not become known by a failure. A stale intent is a request that may have been sent. */
function stateOf({ state, intentId }: CredentialRow): "ACTIVE" | "UNKNOWN" {
  return state === "UNKNOWN" || intentId !== null ? "UNKNOWN" : "ACTIVE";
}

async function note(
  db: VaultDatabase,
  row: CredentialRow,
  intent: Intent,
  failure: Parameters<typeof recordFailure>[3],
): Promise<FailureOutcome> {
  return { kind: (await recordFailure(db, row, intent, failure)) ? "failing" : "current" };
}
