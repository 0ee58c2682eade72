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

// Each round can lose to a refresh that is being stored; more than a few in a row mean a fault.
const maxRounds = 5;

/** Destroys what there is; accounts without a credential are left out, and a repeat gives the first outcome. */
export async function destroyCredentials(
  options: DestroyOptions,
  filter: DestroyFilter,
): Promise<readonly DestroyedCredential[]> {
  for (let round = 0; round < maxRounds; round += 1) {
    if (!(await destroyAsRead(options, filter))) continue;
    const destroyed = await describe(options.db, filter);
    await untilLeasesEnd(options, filter);
    return destroyed;
  }
  throw new StatusError("ABORTED", "CONCURRENT_CHANGE", "The credentials keep changing: try again.");
}

/** Rolls a round back. */
class Moved extends Error {}

/** One round: false, and nothing done, when a credential changed between reading and destroying. */
async function destroyAsRead(options: DestroyOptions, filter: DestroyFilter): Promise<boolean> {
  const rows = (await listCredentials(options.db, filter)).filter(({ state }) => state !== "REVOKED");
  const prepared: PreparedRevocation[] = [];
  // Opened and sealed before the transaction, so that no row is locked while a key service is asked.
  for (const row of rows) prepared.push(...(await prepare(options, row)));
  try {
    await options.db.transaction().execute(async (transaction) => {
      // Rows are locked in the order in which the end of an authorization locks them: its own, then the credential's.
      await failAuthorizationsOf(transaction, filter);
      for (const row of rows) {
        if (!(await revokeCredential(transaction, row, row.generation))) throw new Moved();
      }
      // An authorization that ended while its row was waited for may have brought a credential that was not read.
      if ((await listCredentials(transaction, filter)).some(({ state }) => state !== "REVOKED")) throw new Moved();
      for (const revocation of prepared) await insertRevocation(transaction, revocation);
      const destroyed = rows.map(({ accountId }) => accountId);
      await insertInvalidations(transaction, { projectId: filter.projectId, accountIds: destroyed }, "REVOKED");
    });
    return true;
  } catch (error) {
    if (error instanceof Moved) return false;
    throw error;
  }
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
