// Destroys credentials: in one transaction the secrets go, what is under way for these accounts is fenced off, and the
// provider's revocation is queued. From the commit on no vault process can lease or store a secret of these accounts: a refresh
// that is in flight finds a destroyed row, and hands what it got to the outbox. The answer waits until no proxy can start a
// request with a lease from before (lease-watchers.ts).
import type { Catalog } from "#libs/catalog.ts";
import { StatusError } from "#libs/errors.ts";
import type { SigningKey } from "#libs/signing-key.ts";
import type { Actor } from "./audit-entries.ts";
import { failAuthorizationsOf } from "./authorizations.ts";
import type { CallersFirst } from "./callers-first.ts";
import { type CredentialMaterial, credentialOwner } from "./credentials.ts";
import {
  type DestroyFilter,
  type Destruction,
  type LivingRow,
  listCredentials,
  listDestroyed,
  lockCredentials,
  revokeCredentials,
} from "./destroyed-credentials.ts";
import { insertInvalidations, untilLeasesEnd } from "./lease-invalidations.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import { findOauthClient, type OauthClient } from "./oauth-clients.ts";
import { findAnyApp } from "./own-apps.ts";
import { isOauthApp } from "./provider.ts";
import { type IssuedReceipt, issueReceipt } from "./receipts.ts";
import { insertRevocations, type PreparedRevocation, prepareRevocation } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";
import { deferRevocations } from "./shared-grants.ts";

/** What the parts of destroying need. */
export interface DestroyOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
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

/** A credential that is ready to be destroyed, with the outbox record where its provider can be told. */
interface PreparedDestruction extends Destruction {
  readonly revocation?: PreparedRevocation;
}

// Each round can lose to a refresh that is being stored; then the rows are held, and nothing can be lost to.
const freeRounds = 3;

// How many records are opened and sealed at a time: with a remote key service each takes a round trip or two.
const preparedAtATime = 32;

/** Destroys what there is and gives the receipts; accounts without a credential have none, and a repeat tells the first outcome. */
export async function destroyCredentials(
  options: DestroyOptions,
  request: DestroyRequest,
): Promise<readonly IssuedReceipt[]> {
  let isDone = false;
  for (let round = 0; round < freeRounds && !isDone; round += 1) isDone = await destroyAsRead(options, request);
  if (!isDone) await destroyHeld(options, request);
  await deferRevocations(options.db, options.catalog, request);
  const [receipts] = await Promise.all([issueReceipts(options, request), untilLeasesEnd(options, request)]);
  return receipts;
}

/**
 * One round: false, and no credential destroyed, when one changed between reading and destroying. What goes to the outbox is
 * opened and sealed before the transaction, so that no row is locked while a key service is asked.
 */
async function destroyAsRead(options: DestroyOptions, request: DestroyRequest): Promise<boolean> {
  const rows = unrevoked(await listCredentials(options.db, request));
  const generations = new Map(rows.map(({ accountId, generation }) => [accountId, generation]));
  const destroy = async () => {
    const prepared = await prepareAll(options, request, rows);
    return options.db.transaction().execute(async (transaction) => {
      const held = await holdCredentials(transaction, request);
      const isAsRead = held.every(({ accountId, generation }) => generations.get(accountId) === generation);
      // Fewer than were read: another call has destroyed the rest meanwhile, and told their providers.
      if (isAsRead) await revokeAll(transaction, request, ofRows(prepared, held));
      return isAsRead;
    });
  };
  // Who asks again what became of accounts holds no provider call back.
  return rows.length === 0 ? destroy() : options.callersFirst.serve(destroy);
}

/** The last resort under a storm of refreshes: their storing waits, for as long as keys may have to be asked for. */
async function destroyHeld(options: DestroyOptions, request: DestroyRequest): Promise<void> {
  await options.db.transaction().execute(async (transaction) => {
    const held = await holdCredentials(transaction, request);
    // What is held and nothing else: an account may have been stored since.
    const accountIds = held.map(({ accountId }) => accountId);
    const rows = await listCredentials(transaction, { ...request, accountIds });
    await revokeAll(transaction, request, await prepareAll({ ...options, db: transaction }, request, rows));
  });
}

/** Rows are locked in the order in which the end of an authorization locks them: its own, then the credential's. */
async function holdCredentials(transaction: VaultDatabase, filter: DestroyFilter) {
  await failAuthorizationsOf(transaction, filter);
  return unrevoked(await lockCredentials(transaction, filter));
}

async function revokeAll(
  transaction: VaultDatabase,
  request: DestroyRequest,
  destructions: readonly PreparedDestruction[],
): Promise<void> {
  await revokeCredentials(transaction, request, destructions, request.actor);
  await insertRevocations(
    transaction,
    destructions.flatMap(({ revocation }) => revocation ?? []),
  );
  const accountIds = destructions.map(({ row }) => row.accountId);
  await insertInvalidations(transaction, { projectId: request.projectId, accountIds }, "REVOKED");
}

function unrevoked<Row extends Pick<LivingRow, "state">>(rows: readonly Row[]): readonly Row[] {
  return rows.filter(({ state }) => state !== "REVOKED");
}

function ofRows(
  prepared: readonly PreparedDestruction[],
  rows: readonly Pick<LivingRow, "accountId">[],
): readonly PreparedDestruction[] {
  const accountIds = new Set(rows.map(({ accountId }) => accountId));
  return prepared.filter(({ row }) => accountIds.has(row.accountId));
}

async function prepareAll(
  options: DestroyOptions,
  request: DestroyRequest,
  rows: readonly LivingRow[],
): Promise<readonly PreparedDestruction[]> {
  // One look at each client, whatever the number of its accounts.
  const clients = new Map<string, Promise<OauthClient | undefined>>();
  const findClient = (row: LivingRow) => {
    const name = JSON.stringify([row.oauthAppId, row.appSlug]);
    const client = clients.get(name) ?? readable(findOauthClient(options, row));
    clients.set(name, client);
    return client;
  };
  const prepared: PreparedDestruction[] = [];
  for (let from = 0; from < rows.length; from += preparedAtATime) {
    const some = rows.slice(from, from + preparedAtATime);
    prepared.push(...(await Promise.all(some.map((row) => prepare(options, request, row, findClient)))));
  }
  return prepared;
}

async function prepare(
  { db, catalog, secrets }: DestroyOptions,
  { revokeSharedGrant }: DestroyRequest,
  row: LivingRow,
  findClient: (row: LivingRow) => Promise<OauthClient | undefined>,
): Promise<PreparedDestruction> {
  const app = await findAnyApp({ db, catalog }, row);
  if (app !== undefined && !isOauthApp(app)) return { row, destroyedKinds: ["fields"] };
  const material = await readable(secrets.open<CredentialMaterial>(credentialOwner(row), row));
  const destroyedKinds = kindsOf(material);
  // A shadowed grant belongs to the system that it was imported from.
  if (app?.oauth2.revoke === undefined || row.shadow) return { row, destroyedKinds };
  const client = await findClient(row);
  const value = material && client && { ...material, client };
  return { row, destroyedKinds, revocation: await prepareRevocation(secrets, { ...row, revokeSharedGrant }, value) };
}

function kindsOf(material: CredentialMaterial | undefined): readonly string[] {
  return [
    ...(material?.accessToken === undefined ? [] : ["access_token"]),
    ...(material?.refreshToken === undefined ? [] : ["refresh_token"]),
    ...(Object.keys(material?.fields ?? {}).length === 0 ? [] : ["fields"]),
  ];
}

/** What cannot be read can still be destroyed; the record then says that the provider was not told. */
async function readable<Value>(opening: Promise<Value>): Promise<Value | undefined> {
  try {
    return await opening;
  } catch (error) {
    if (error instanceof StatusError && error.code === "DATA_LOSS") return undefined;
    throw error;
  }
}

async function issueReceipts({ db, signingKey }: DestroyOptions, filter: DestroyFilter): Promise<IssuedReceipt[]> {
  const destroyed = await listDestroyed(db, filter);
  return Promise.all(destroyed.map((credential) => issueReceipt(signingKey, credential)));
}
