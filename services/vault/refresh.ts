// The refresh of an access token. With strict rotation a refresh token works once, and a second use makes the provider kill
// the whole grant: one double call loses the account, and a person has to connect again. So:
//
//   JOIN    one attempt per account in this process; whoever comes meanwhile waits for it
//   LOCK    one attempt over all processes: an advisory lock that ends with its process. Busy: try again, and find either the
//           lock free or the row at a newer generation
//   INTENT  short transaction: the row is usable, still at the generation that the caller saw, and no other process sent
//           something in the last 30 s (one may have lost its lock connection while its call goes on)
//   SEND    outside any transaction, detached from every caller: a caller that leaves must not tear a spent grant
//   RECORD  stored iff the row still has that generation and is usable, and repeated until the database answers, which is safe
//           because a stored intent knows itself again. Destroyed meanwhile: the new tokens go to the revocation outbox
//   UNLOCK
//
// The lock gives liveness, the generation gives truth: a process that wakes up after any pause finds the generation moved and
// changes nothing. Lost at a crash: before SEND nothing; between the provider's answer and RECORD the new tokens, and with
// strict rotation that one account's grant, never a wrong or a foreign token. All times are the database's.
import { setTimeout as sleep } from "node:timers/promises";
import type { Catalog } from "#libs/catalog.ts";
import { newId } from "#libs/ids.ts";
import type { Logger } from "#libs/log.ts";
import type { AccountLocks } from "./account-locks.ts";
import {
  type CredentialKey,
  type CredentialMaterial,
  type CredentialRow,
  credentialOwner,
  findCredential,
} from "./credentials.ts";
import { factsOf, materialOf } from "./grants.ts";
import { findOauthClient } from "./oauth-clients.ts";
import { persist } from "./persist.ts";
import { isOauthApp, type ProviderContext, refreshGrant } from "./provider.ts";
import type { ProviderAccess } from "./provider-http.ts";
import { beginRefresh, type Intent, recordFailure, recordRefresh } from "./refresh-records.ts";
import { backoffAfter, isValid } from "./refresh-times.ts";
import { insertRevocation, prepareRevocation } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import { type ReadyKey, type Secrets, sealWith } from "./secrets.ts";
import type { TokenGrant, TokenOutcome } from "./token-answers.ts";

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

/** What a refresher is made of. */
export interface RefreshOptions {
  readonly db: VaultDatabase;
  readonly locks: AccountLocks;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly providers: ProviderAccess;
  readonly log: Logger;
}

/** Refreshes credentials of this process's callers. */
export interface Refresher {
  /** Refreshes unless the row has left `generation`. Never rejects because a caller left; callers stop waiting by themselves. */
  refresh(key: CredentialKey & { readonly generation: bigint }): Promise<RefreshOutcome>;
  /** Resolves when nothing is under way. */
  idle(): Promise<void>;
}

// A provider call and its storing are over by then; a process that is stalled for longer is left to its fence.
const lockWaitMs = 25_000;
const lockPollMs = 100;

/** Makes the process's refresher. */
export function createRefresher(options: RefreshOptions): Refresher {
  const { db, locks } = options;
  const processId = newId("int");
  const underWay = new Map<string, Promise<RefreshOutcome>>();

  async function locked(key: CredentialKey & { readonly generation: bigint }): Promise<RefreshOutcome> {
    const giveUpMs = performance.now() + lockWaitMs;
    while (performance.now() < giveUpMs) {
      const unlock = await locks.tryLock(key);
      if (unlock !== undefined) {
        try {
          const outcome = await refreshLocked(options, key, processId);
          if (outcome.kind !== "busy") return outcome;
        } finally {
          await unlock();
        }
      }
      await sleep(lockPollMs * (0.5 + Math.random()));
      const row = await findCredential(db, key);
      if (row?.generation !== key.generation) return { kind: "current" };
    }
    return { kind: "busy" };
  }

  return {
    refresh(key) {
      const name = JSON.stringify([key.projectId, key.accountId]);
      const joined = underWay.get(name);
      if (joined !== undefined) return joined;
      const started = locked(key).finally(() => underWay.delete(name));
      underWay.set(name, started);
      return started;
    },
    async idle() {
      await Promise.allSettled(underWay.values());
    },
  };
}

/** One attempt, from INTENT to RECORD, by the holder of the lock. */
async function refreshLocked(
  options: RefreshOptions,
  key: CredentialKey & { readonly generation: bigint },
  processId: string,
): Promise<RefreshOutcome> {
  const { db, secrets, catalog, providers } = options;
  const row = await findCredential(db, key);
  const app = row && catalog.get(row.appSlug);
  if (row === undefined || row.blob === null || app === undefined || !isOauthApp(app)) return { kind: "unusable" };
  if (row.generation !== key.generation) return { kind: "current" };
  // Everything that can be missing or unreadable is fetched before the intent is written and the grant is spent.
  const owner = credentialOwner(row);
  const dataKey = await secrets.keyOf(owner, row);
  const { refreshToken, fields } = await secrets.open<CredentialMaterial>(owner, row);
  if (refreshToken === undefined && isValid(row)) return { kind: "unusable" };
  const client = await findOauthClient(options, row);
  const intent: Intent = { id: newId("int"), by: processId };
  const strict = app.lifecycle.rotation === "strict";
  const begun = await beginRefresh(db, key, { generation: row.generation, intent, strict });
  if (begun.kind === "backoff") return { kind: "failing" };
  if (begun.kind !== "intended") return begun;
  if (refreshToken === undefined) {
    await recordFailure(db, row, intent, { state: "NEEDS_REAUTH", reason: "NO_REFRESH_TOKEN" });
    return { kind: "unusable" };
  }
  if (client === undefined) {
    return noteFailure(options, row, intent, { kind: "client_rejected", error: "OAUTH_CLIENT_MISSING" });
  }
  const outcome = await refreshGrant(providers, { app, client, fields }, refreshToken);
  if (outcome.kind !== "granted") return noteFailure(options, row, intent, outcome);
  // A provider that gives no new refresh token leaves the old one good.
  const grant = { refreshToken, ...outcome.grant };
  return store(options, { row, intent, dataKey, context: { app, client, fields }, grant });
}

async function noteFailure(
  { db, log }: RefreshOptions,
  row: CredentialRow,
  intent: Intent,
  outcome: Exclude<TokenOutcome, { kind: "granted" }>,
): Promise<RefreshOutcome> {
  const { accountId, appSlug } = row;
  log.warn({ accountId, appSlug, outcome: outcome.kind, error: outcome.error }, "refresh failed");
  if (outcome.kind === "rejected") {
    // Where the generation has moved the refusal was of an older token, and nobody is the worse.
    const isDead = await recordFailure(db, row, intent, { state: "NEEDS_REAUTH", reason: "INVALID_GRANT" });
    return { kind: isDead ? "unusable" : "current" };
  }
  const retryAfter = outcome.kind === "retry" ? outcome.retryAfterSeconds : undefined;
  const retrySeconds = backoffAfter(row.failures + 1, Math.random, retryAfter);
  const state = outcome.kind === "unknown" ? "UNKNOWN" : row.state === "UNKNOWN" ? "UNKNOWN" : "ACTIVE";
  const reason = outcome.kind === "client_rejected" ? "OAUTH_CLIENT_REJECTED" : "PROVIDER_FAILING";
  const noted = await recordFailure(db, row, intent, { state, reason, retrySeconds });
  return { kind: noted ? "failing" : "current" };
}

interface Refreshed {
  readonly row: CredentialRow;
  readonly intent: Intent;
  readonly dataKey: ReadyKey;
  readonly context: ProviderContext;
  readonly grant: TokenGrant;
}

async function store(options: RefreshOptions, refreshed: Refreshed): Promise<RefreshOutcome> {
  const { row, dataKey, context, grant } = refreshed;
  const next = materialOf(grant, context.fields);
  const sealed = sealWith(dataKey, credentialOwner(row), row.generation + 1n, next);
  const facts = factsOf(context.app, grant, row.scopes);
  return persist(options.log, row, async () => {
    const isStored = await recordRefresh(options.db, row, { intent: refreshed.intent, sealed, facts });
    return isStored ? { kind: "refreshed" } : settleUnstored(options, refreshed);
  });
}

/** The row is not what the refresh began from: stored already, destroyed, or connected anew. */
async function settleUnstored(
  { db, secrets }: RefreshOptions,
  { row, intent, context, grant }: Refreshed,
): Promise<RefreshOutcome> {
  const now = await findCredential(db, row);
  if (now?.lastIntentId === intent.id) return { kind: "refreshed" };
  if (now?.state !== "REVOKED") return { kind: "current" };
  if (context.app.oauth2.revoke !== undefined) {
    const { client } = context;
    const prepared = await prepareRevocation(secrets, row, { ...materialOf(grant, context.fields), client });
    await db.transaction().execute((transaction) => insertRevocation(transaction, prepared));
  }
  return { kind: "unusable" };
}
