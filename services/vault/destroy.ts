// Destroys credentials: in one transaction what is under way for these accounts is fenced off, the outbox takes over what the
// provider is to be told of, and the rows are wiped. No key is asked for, whatever the number of accounts. From the commit on no vault process can lease or store a secret of these accounts: a refresh that is in flight finds a destroyed row, and
// hands what it got to the outbox. The answer waits until no proxy can start a request with a lease from before
// (lease-watchers.ts).
import type { Catalog, CatalogApp } from "#libs/catalog.ts";
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
import { type AppSource, findAnyApp } from "./own-apps.ts";
import { isOauthApp } from "./provider.ts";
import { type IssuedReceipt, issueReceipt } from "./receipts.ts";
import { type EndingGrant, takeOverGrants } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import { deferRevocations, endsAllGrants } from "./shared-grants.ts";

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
  const { db, catalog } = options;
  const apps = await db.transaction().execute((transaction) => destroyLiving({ ...options, db: transaction }, request));
  // Who repeats may find everything destroyed by a call that was killed before it had deferred.
  if (apps.length === 0 || apps.some(endsAllGrants)) await deferRevocations(db, catalog, request);
  const [receipts] = await Promise.all([issueReceipts(options, request), untilLeasesEnd(options, request)]);
  return receipts;
}

/** Gives the apps of what it destroyed, as far as they are known. */
async function destroyLiving(options: DestroyOptions, request: DestroyRequest): Promise<readonly CatalogApp[]> {
  const { db, callersFirst } = options;
  // Rows are locked in the order in which the end of an authorization locks them: its own, then the credential's.
  await failAuthorizationsOf(db, request);
  const rows = await lockCredentials(db, request);
  // Who asks again what became of accounts holds no provider call back.
  if (rows.length === 0) return [];
  const living = { ...request, accountIds: rows.map(({ accountId }) => accountId) };
  const apps = await appsOf(options, rows);
  await callersFirst.serve(async () => {
    await takeOverGrants(db, living, await grantsToTell(db, rows, apps));
    await revokeCredentials(db, living, request.actor);
    await insertInvalidations(db, living, "REVOKED");
  });
  return apps;
}

async function appsOf(source: AppSource, rows: readonly LivingRow[]): Promise<readonly CatalogApp[]> {
  const apps: CatalogApp[] = [];
  for (const row of new Map(rows.map((one) => [one.appSlug, one])).values()) {
    const app = await findAnyApp(source, row);
    if (app !== undefined) apps.push(app);
  }
  return apps;
}

/** The grants whose provider is to be told that they are over. */
async function grantsToTell(
  db: VaultDatabase,
  rows: readonly LivingRow[],
  apps: readonly CatalogApp[],
): Promise<readonly EndingGrant[]> {
  const revocable = new Set<string>();
  for (const app of apps) if (isOauthApp(app) && app.oauth2.revoke !== undefined) revocable.add(app.slug);
  // A shadowed grant belongs to the system that it was imported from.
  const grants = rows.filter(({ shadow, appSlug }) => !shadow && revocable.has(appSlug));
  const [first] = grants;
  if (first === undefined) return [];
  const named = [...new Set(grants.map(({ oauthAppId }) => oauthAppId))];
  const clients = await holdOauthClients(db, first.projectId, named);
  const slugs = new Map(clients.map(({ oauthAppId, appSlug }) => [oauthAppId, appSlug]));
  return grants.map(({ accountId, oauthAppId, appSlug }) => ({
    accountId,
    hasClient: slugs.get(oauthAppId) === appSlug,
  }));
}

async function issueReceipts({ db, signingKey }: DestroyOptions, filter: DestroyFilter): Promise<IssuedReceipt[]> {
  const destroyed = await listDestroyed(db, filter);
  return Promise.all(destroyed.map((credential) => issueReceipt(signingKey, credential)));
}
