// The RECORD of a refresh: what the provider gave is stored, repeated until the database answers, and kept in the spool when
// that takes longer than a moment. A repeat is harmless: a stored intent knows itself again, and a row that has moved on is
// left as it is. Destroyed meanwhile: the new tokens go to the revocation outbox.
import type { Logger } from "#libs/log.ts";
import type { PassPoint } from "./crash-points.ts";
import {
  type CredentialMaterial,
  type CredentialRow,
  credentialOwner,
  findCredential,
  type GrantFacts,
  secretKinds,
} from "./credentials.ts";
import type { OauthClient } from "./oauth-clients.ts";
import { persist } from "./persist.ts";
import { recordRefresh } from "./refresh-records.ts";
import { insertRevocation, prepareRevocation } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import { type ReadyKey, type Secrets, sealWith } from "./secrets.ts";
import type { Spool } from "./spool.ts";

/** What storing needs. */
export interface StoreOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly log: Logger;
  readonly spool: Spool | undefined;
  readonly passPoint: PassPoint;
}

/** A refresh that the provider granted, with all that is needed to store it in another life of the process. */
export interface GrantedRefresh {
  readonly subject: Pick<CredentialRow, "projectId" | "environment" | "externalUserId" | "accountId" | "appSlug">;
  /** Of the row that it began from. */
  readonly generation: bigint;
  readonly intentId: string;
  readonly facts: GrantFacts;
  readonly material: CredentialMaterial;
  /** Who can revoke it at the provider; absent where nobody can. */
  readonly revoker?: OauthClient;
}

/** What became of it. */
export type StoreOutcome =
  | { readonly kind: "refreshed" }
  | { readonly kind: "current" }
  | { readonly kind: "unusable" };

// A commit takes some milliseconds: after this time something is wrong, and the grant is worth a disk sync.
const spoolAfterMs = 100;

/** Stores it. `dataKey` is the row's own, ready before the grant was spent. */
export async function storeRefresh(
  options: StoreOptions,
  granted: GrantedRefresh,
  dataKey: ReadyKey,
): Promise<StoreOutcome> {
  const { log, spool, passPoint } = options;
  const stored = persist(log, granted.subject, () => recordOnce(options, granted, dataKey));
  const outcome = spool ? await spooled(spool, { log, granted, passPoint }, stored) : await stored;
  passPoint("recorded");
  return outcome;
}

/** Stores what an earlier life of a process left behind. To be done before the process serves. */
export function drainSpool(options: StoreOptions): Promise<void> {
  const drained = options.spool?.drain(async (value) => {
    const granted = readGranted(value);
    const row = await findCredential(options.db, granted.subject);
    if (row === undefined) return;
    const dataKey = row.blob === null ? undefined : await options.secrets.keyOf(credentialOwner(row), row);
    const { kind } = await recordOnce(options, granted, dataKey);
    const { accountId, appSlug } = granted.subject;
    options.log.warn({ accountId, appSlug, outcome: kind }, "a spooled grant was stored");
  });
  return drained ?? Promise.resolve();
}

/** Waits for the store, with the grant in the spool from the time at which it should have been done. */
async function spooled<Outcome>(
  spool: Spool,
  { log, granted, passPoint }: { log: Logger; granted: GrantedRefresh; passPoint: PassPoint },
  stored: Promise<Outcome>,
): Promise<Outcome> {
  const { accountId, appSlug } = granted.subject;
  let appended: Promise<void> | undefined;
  const timer = setTimeout(() => {
    appended = spool.append(granted.intentId, writeGranted(granted)).then(
      () => passPoint("spooled"),
      // The database may still take it; without a disk there is nothing else to do.
      (error: unknown) => log.error({ accountId, appSlug, err: error }, "a grant could not be spooled"),
    );
  }, spoolAfterMs);
  try {
    const outcome = await stored;
    clearTimeout(timer);
    await appended;
    if (appended !== undefined) await spool.remove(granted.intentId);
    return outcome;
  } finally {
    clearTimeout(timer);
  }
}

async function recordOnce(
  { db, secrets }: StoreOptions,
  { subject, generation, intentId, facts, material, revoker }: GrantedRefresh,
  dataKey: ReadyKey | undefined,
): Promise<StoreOutcome> {
  if (dataKey !== undefined) {
    const sealed = sealWith(dataKey, credentialOwner(subject), generation + 1n, material);
    const brought = { intentId, sealed, kinds: secretKinds(material), facts };
    if (await recordRefresh(db, { ...subject, generation }, brought)) return { kind: "refreshed" };
  }
  // The row is not what the refresh began from: stored already, connected anew, or destroyed.
  const { projectId, accountId } = subject;
  // Whoever it belongs to by now: an erased user has a pseudonym there.
  const now = await findCredential(db, { projectId, accountId });
  if (now?.lastIntentId === intentId) return { kind: "refreshed" };
  if (now?.state !== "REVOKED") return { kind: "current" };
  if (revoker !== undefined) {
    const prepared = await prepareRevocation(secrets, now, { ...material, client: revoker });
    await db.transaction().execute((transaction) => insertRevocation(transaction, prepared));
  }
  return { kind: "unusable" };
}

function writeGranted({ generation, ...granted }: GrantedRefresh): unknown {
  return { ...granted, generation: String(generation) };
}

function readGranted(value: unknown): GrantedRefresh {
  const { generation, facts, ...granted } = value as Omit<GrantedRefresh, "generation" | "facts"> & {
    readonly generation: string;
    readonly facts: Omit<GrantFacts, "since"> & { readonly since: string };
  };
  return { ...granted, generation: BigInt(generation), facts: { ...facts, since: new Date(facts.since) } };
}
