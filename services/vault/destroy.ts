// Destroys credentials: in one transaction the secrets go, what is under way for these accounts is fenced off, and the
// provider's revocation is queued. From the commit on no vault process can lease or store a secret of these accounts: a refresh
// that is in flight finds a destroyed row, and hands what it got to the outbox. The answer waits until no proxy can start a
// request with a lease from before (lease-watchers.ts).
import type { Catalog } from "#libs/catalog.ts";
import { StatusError } from "#libs/errors.ts";
import { failAuthorizationsOf } from "./authorizations.ts";
import {
  type CredentialMaterial,
  type CredentialRow,
  credentialOwner,
  type DestroyFilter,
  listCredentials,
  lockCredentials,
  revokeCredential,
} from "./credentials.ts";
import { insertInvalidations, untilLeasesEnd } from "./lease-invalidations.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import { findOauthClient } from "./oauth-clients.ts";
import { isOauthApp } from "./provider.ts";
import { insertRevocation, listRevocationStates, type PreparedRevocation, prepareRevocation } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";

/** What the parts of destroying need. */
export interface DestroyOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly signals: LeaseSignals;
}

/** What was destroyed, and what the provider knows of it. */
export interface DestroyedCredential {
  readonly row: CredentialRow;
  readonly providerRevocation: "NOT_APPLICABLE" | "PENDING" | "DONE" | "FAILED";
}

// Each round can lose to a refresh that is being stored; then the rows are held, and nothing can be lost to.
const freeRounds = 3;

/** Destroys what there is; accounts without a credential are left out, and a repeat gives the first outcome. */
export async function destroyCredentials(
  options: DestroyOptions,
  filter: DestroyFilter,
): Promise<readonly DestroyedCredential[]> {
  let isDone = false;
  for (let round = 0; round < freeRounds && !isDone; round += 1) isDone = await destroyAsRead(options, filter);
  if (!isDone) await destroyHeld(options, filter);
  const destroyed = await describe(options.db, filter);
  await untilLeasesEnd(options, filter);
  return destroyed;
}

/** Rolls a round back. */
class Moved extends Error {}

/**
 * One round: false, and nothing done, when a credential changed between reading and destroying. What goes to the outbox is
 * opened and sealed before the transaction, so that no row is locked while a key service is asked.
 */
async function destroyAsRead(options: DestroyOptions, filter: DestroyFilter): Promise<boolean> {
  const rows = unrevoked(await listCredentials(options.db, filter));
  const prepared = await prepareAll(options, rows);
  try {
    await options.db.transaction().execute(async (transaction) => {
      // Rows are locked in the order in which the end of an authorization locks them: its own, then the credential's.
      await failAuthorizationsOf(transaction, filter);
      await revokeAll(transaction, filter, rows, prepared);
      // An authorization that ended while its row was waited for may have brought a credential that was not read.
      if (unrevoked(await listCredentials(transaction, filter)).length > 0) throw new Moved();
    });
    return true;
  } catch (error) {
    if (error instanceof Moved) return false;
    throw error;
  }
}

/** The last resort under a storm of refreshes: their storing waits, for as long as keys may have to be asked for. */
async function destroyHeld(options: DestroyOptions, filter: DestroyFilter): Promise<void> {
  await options.db.transaction().execute(async (transaction) => {
    await failAuthorizationsOf(transaction, filter);
    const rows = unrevoked(await lockCredentials(transaction, filter));
    await revokeAll(transaction, filter, rows, await prepareAll({ ...options, db: transaction }, rows));
  });
}

async function revokeAll(
  transaction: VaultDatabase,
  { projectId }: DestroyFilter,
  rows: readonly CredentialRow[],
  prepared: readonly PreparedRevocation[],
): Promise<void> {
  for (const row of rows) {
    if (!(await revokeCredential(transaction, row, row.generation))) throw new Moved();
  }
  for (const revocation of prepared) await insertRevocation(transaction, revocation);
  const accountIds = rows.map(({ accountId }) => accountId);
  await insertInvalidations(transaction, { projectId, accountIds }, "REVOKED");
}

function unrevoked(rows: readonly CredentialRow[]): readonly CredentialRow[] {
  return rows.filter(({ state }) => state !== "REVOKED");
}

async function prepareAll(
  options: DestroyOptions,
  rows: readonly CredentialRow[],
): Promise<readonly PreparedRevocation[]> {
  const prepared: PreparedRevocation[] = [];
  for (const row of rows) prepared.push(...(await prepare(options, row)));
  return prepared;
}

/** The outbox record for one credential, where its provider can be told. */
async function prepare(options: DestroyOptions, row: CredentialRow): Promise<readonly PreparedRevocation[]> {
  const app = options.catalog.get(row.appSlug);
  // A shadowed grant belongs to the system that it was imported from.
  if (app === undefined || !isOauthApp(app) || app.oauth2.revoke === undefined || row.shadow) return [];
  try {
    const material = await options.secrets.open<CredentialMaterial>(credentialOwner(row), row);
    const client = await findOauthClient(options, row);
    return [await prepareRevocation(options.secrets, row, client && { ...material, client })];
  } catch (error) {
    // What cannot be read can still be destroyed; the record says that the provider was not told.
    if (error instanceof StatusError && error.code === "DATA_LOSS") {
      return [await prepareRevocation(options.secrets, row, undefined)];
    }
    throw error;
  }
}

async function describe(db: VaultDatabase, filter: DestroyFilter): Promise<readonly DestroyedCredential[]> {
  const rows = await listCredentials(db, filter);
  const states = await listRevocationStates(db, filter.projectId, filter.accountIds);
  return rows.map((row) => ({ row, providerRevocation: states.get(row.accountId) ?? "NOT_APPLICABLE" }));
}
