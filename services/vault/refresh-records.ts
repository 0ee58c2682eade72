// The three statements of a refresh on its row: begin it, store what it brought, note that it failed. Each holds only while
// the row is as the refresh found it.
import { sql } from "kysely";
import { accountOf, auditedAccount, changeAudited, insertAuditEntries, vaultItself } from "./audit-entries.ts";
import {
  type CredentialKey,
  type CredentialRow,
  type GrantFacts,
  grantColumns,
  isUsable,
  lockCredential,
  secondsFromNow,
} from "./credentials.ts";
import { lostGrantWait } from "./refresh-times.ts";
import type { VaultDatabase } from "./schema.ts";
import type { SealedColumns } from "./secrets.ts";

/** Longer than any provider request (20 s): an intent that old belongs to a process that is gone. */
export const intentSeconds = 30;

/** Whether the refresh may be sent. */
export type IntentOutcome =
  | { readonly kind: "intended"; readonly row: CredentialRow }
  /** The secret has changed since the caller saw it. */
  | { readonly kind: "current" }
  /** Another process sent one that may still be under way. */
  | { readonly kind: "busy" }
  /** It failed a moment ago. */
  | { readonly kind: "backoff" }
  /** An earlier one was sent, its process is gone, and the access token is still good: see `lostGrantWait`. */
  | { readonly kind: "lost" }
  /** Absent, destroyed, or in need of its user. */
  | { readonly kind: "unusable" };

/** An intent: which refresh, and which process. */
export interface Intent {
  readonly id: string;
  readonly by: string;
}

const noIntent = { intentId: null, intentBy: null, intentTime: null };

/** Which refresh is to begin. `strict`: the refresh token works once, and a second use would kill the grant. */
interface Beginning {
  readonly generation: bigint;
  readonly intent: Intent;
  readonly strict: boolean;
}

/** Writes the intent, which proves that the store takes writes before a grant is spent. */
export async function beginRefresh(
  db: VaultDatabase,
  key: CredentialKey,
  beginning: Beginning,
): Promise<IntentOutcome> {
  const row = await beginUndisturbed(db, key, beginning);
  return row ? { kind: "intended", row } : beginInTransaction(db, key, beginning);
}

/** One statement for the row of which nothing speaks against it, nearly always the case: a third of a refresh's way to the database. */
async function beginUndisturbed(
  db: VaultDatabase,
  key: CredentialKey,
  { generation, intent }: Beginning,
): Promise<CredentialRow | undefined> {
  const row = await update(db, key)
    .set({ intentId: intent.id, intentBy: intent.by, intentTime: sql<Date>`clock_timestamp()` })
    .where("generation", "=", generation)
    .where("state", "in", ["ACTIVE", "UNKNOWN"])
    .where("shadow", "=", false)
    .where("intentId", "is", null)
    .where(sql<boolean>`(retry_time is null or retry_time <= clock_timestamp())`)
    .returningAll()
    .returning(sql<Date>`clock_timestamp()`.as("readTime"))
    .executeTakeFirst();
  // As it was found.
  return row && { ...row, ...noIntent };
}

/** Looks what speaks against it, and begins where that has passed. */
function beginInTransaction(
  db: VaultDatabase,
  key: CredentialKey,
  { generation, intent, strict }: Beginning,
): Promise<IntentOutcome> {
  return db.transaction().execute(async (transaction): Promise<IntentOutcome> => {
    const row = await lockCredential(transaction, key);
    // Shadowed: the system that it comes from refreshes it, and a second refresh could kill the grant.
    if (row === undefined || !isUsable(row) || row.shadow) return { kind: "unusable" };
    if (row.generation !== generation) return { kind: "current" };
    if (row.retryTime !== null && row.retryTime > row.readTime) return { kind: "backoff" };
    const ageMs =
      row.intentTime === null ? Number.POSITIVE_INFINITY : row.readTime.getTime() - row.intentTime.getTime();
    if (strict && row.intentBy !== intent.by && ageMs < intentSeconds * 1000) return { kind: "busy" };
    const waitSeconds = strict && row.intentId !== null ? lostGrantWait(row) : 0;
    if (waitSeconds > 0) {
      const retryTime = secondsFromNow(waitSeconds);
      await update(transaction, key)
        .set({ ...noIntent, state: "UNKNOWN", stateReason: "ANSWER_LOST", retryTime, nextRefreshTime: retryTime })
        .execute();
      const action = "credential.refresh_failed" as const;
      await insertAuditEntries(transaction, { action, actor: vaultItself, reason: "ANSWER_LOST", ...accountOf(row) });
      return { kind: "lost" };
    }
    await update(transaction, key)
      .set({ intentId: intent.id, intentBy: intent.by, intentTime: sql<Date>`clock_timestamp()` })
      .execute();
    return { kind: "intended", row };
  });
}

/** What a refresh brought. */
interface RefreshedGrant {
  readonly intentId: string;
  readonly sealed: SealedColumns;
  readonly kinds: CredentialRow["secretKinds"];
  readonly facts: GrantFacts;
}

/** Stores the new secret. False when the row has another generation, or was destroyed. */
export async function recordRefresh(
  db: VaultDatabase,
  { projectId, accountId, generation }: CredentialKey & { readonly generation: bigint },
  { intentId, sealed, kinds, facts }: RefreshedGrant,
): Promise<boolean> {
  const change = update(db, { projectId, accountId })
    .set({
      // The data key stays, and its wrapping may have been rotated since the refresh began: that is not put back.
      blob: sealed.blob,
      secretKinds: kinds,
      ...grantColumns(facts),
      ...noIntent,
      state: "ACTIVE",
      stateReason: "",
      generation: generation + 1n,
      lastIntentId: intentId,
      failures: 0,
      faults: 0,
      retryTime: null,
      lastRefreshTime: sql<Date>`now()`,
      updateTime: sql<Date>`now()`,
    })
    .where("generation", "=", generation)
    // An account that another process took for dead meanwhile lives after all.
    .where("state", "<>", "REVOKED")
    .returning(auditedAccount);
  return (await changeAudited(db, change, { action: "credential.refreshed", actor: vaultItself })) === 1;
}

/** Notes a refresh that brought nothing, or one that was not sent. False when the row has moved on meanwhile, and the failure was a race. */
export async function recordFailure(
  db: VaultDatabase,
  { projectId, accountId, generation }: CredentialRow,
  intent: Intent,
  failure: { state: "ACTIVE" | "UNKNOWN" | "NEEDS_REAUTH"; reason: string; retrySeconds?: number },
): Promise<boolean> {
  const retryTime = secondsFromNow(failure.retrySeconds);
  const change = update(db, { projectId, accountId })
    .set({
      ...noIntent,
      state: failure.state,
      stateReason: failure.reason,
      failures: sql<number>`failures + 1`,
      retryTime,
      nextRefreshTime: failure.state === "NEEDS_REAUTH" ? null : retryTime,
      updateTime: sql<Date>`now()`,
    })
    .where("generation", "=", generation)
    .where("intentId", "=", intent.id)
    .where("state", "in", ["ACTIVE", "UNKNOWN"])
    .returning(auditedAccount);
  const action = failure.state === "NEEDS_REAUTH" ? "credential.refresh_refused" : "credential.refresh_failed";
  return (await changeAudited(db, change, { action, actor: vaultItself, reason: failure.reason })) === 1;
}

function update(db: VaultDatabase, { projectId, accountId }: CredentialKey) {
  return db.updateTable("credentials").where("projectId", "=", projectId).where("accountId", "=", accountId);
}
