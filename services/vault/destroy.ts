// Destroys credentials: in one transaction what is under way for these accounts is fenced off, the outbox takes over what the
// provider is to be told of, and the rows are wiped. No key is asked for, whatever the number of accounts. From the commit on no vault process can lease or store a secret of these accounts: a refresh that is in flight finds a destroyed row, and
// hands what it got to the outbox. The answer waits until no proxy can start a request with a lease from before
// (lease-watchers.ts).
import type { Catalog } from "#libs/catalog.ts";
import type { SigningKey } from "#libs/signing-key.ts";
import type { Actor } from "./audit-entries.ts";
import { failAuthorizationsOf } from "./authorizations.ts";
import type { CallersFirst } from "./callers-first.ts";
import {
  type DestroyFilter,
  type LivingRow,
  listDestroyed,
  lockCredentials,
  revokeCredentials,
} from "./destroyed-credentials.ts";
import { insertInvalidations, untilLeasesEnd } from "./lease-invalidations.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import { holdOauthClients } from "./oauth-clients.ts";
import { findAnyApp } from "./own-apps.ts";
import { isOauthApp } from "./provider.ts";
import { type IssuedReceipt, issueReceipt } from "./receipts.ts";
import { type EndingGrant, takeOverGrants } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import { deferRevocations } from "./shared-grants.ts";

/** What the parts of destroying need. */
export interface DestroyOptions {
  readonly db: VaultDatabase;
  readonly catalog: Catalog;
  readonly signals: LeaseSignals;
  readonly signingKey: SigningKey;
  readonly callersFirst: CallersFirst;
}

/** What is asked for. */
export interface DestroyRequest extends DestroyFilter {
  /** Tells the provider at once, even where that ends other accounts' grants. */
  readonly revokeSharedGrant: boolean;
  /** Who asks. */
  readonly actor: Actor;
}

/** Destroys what there is and gives the receipts; accounts without a credential have none, and a repeat tells the first outcome. */
export async function destroyCredentials(
  options: DestroyOptions,
  request: DestroyRequest,
): Promise<readonly IssuedReceipt[]> {
  await options.db.transaction().execute((transaction) => destroyLiving({ ...options, db: transaction }, request));
  await deferRevocations(options.db, options.catalog, request);
  const [receipts] = await Promise.all([issueReceipts(options, request), untilLeasesEnd(options, request)]);
  return receipts;
}

async function destroyLiving(options: DestroyOptions, request: DestroyRequest): Promise<void> {
  const { db, callersFirst } = options;
  // Rows are locked in the order in which the end of an authorization locks them: its own, then the credential's.
  await failAuthorizationsOf(db, request);
  const rows = await lockCredentials(db, request);
  // Who asks again what became of accounts holds no provider call back.
  if (rows.length === 0) return;
  const living = { ...request, accountIds: rows.map(({ accountId }) => accountId) };
  await callersFirst.serve(async () => {
    await takeOverGrants(db, living, await grantsToTell(options, rows));
    await revokeCredentials(db, living, request.actor);
    await insertInvalidations(db, living, "REVOKED");
  });
}

/** The grants whose provider is to be told that they are over. */
async function grantsToTell(source: DestroyOptions, rows: readonly LivingRow[]): Promise<readonly EndingGrant[]> {
  // A shadowed grant belongs to the system that it was imported from.
  const own = rows.filter(({ shadow }) => !shadow);
  const revocable = new Set<string>();
  for (const row of new Map(own.map((one) => [one.appSlug, one])).values()) {
    const app = await findAnyApp(source, row);
    if (app !== undefined && isOauthApp(app) && app.oauth2.revoke !== undefined) revocable.add(row.appSlug);
  }
  const grants = own.filter(({ appSlug }) => revocable.has(appSlug));
  const [first] = grants;
  if (first === undefined) return [];
  const named = [...new Set(grants.map(({ oauthAppId }) => oauthAppId))];
  const clients = await holdOauthClients(source.db, first.projectId, named);
  const apps = new Map(clients.map(({ oauthAppId, appSlug }) => [oauthAppId, appSlug]));
  return grants.map(({ accountId, oauthAppId, appSlug }) => ({
    accountId,
    hasClient: apps.get(oauthAppId) === appSlug,
  }));
}

async function issueReceipts({ db, signingKey }: DestroyOptions, filter: DestroyFilter): Promise<IssuedReceipt[]> {
  const destroyed = await listDestroyed(db, filter);
  return Promise.all(destroyed.map((credential) => issueReceipt(signingKey, credential)));
}
