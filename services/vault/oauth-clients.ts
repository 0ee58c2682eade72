// The table of OAuth clients: a project's own client at a provider, with its ordered secrets sealed. Each use of a client tries
// them in their order, and begins with the one that the provider took last, whatever it was used for: so a secret is replaced
// without downtime by putting the new one beside the old one, until the log says that the old one is unused.
import { type Selectable, sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import { type Actor, insertAuditEntries } from "./audit-entries.ts";
import { releaseWaiting } from "./client-breaker.ts";
import type { OauthClientsTable, VaultDatabase } from "./schema.ts";
import { type SecretOwner, type Secrets, sealWith, wiped } from "./secrets.ts";

/** As many as the contract lets a request bring. */
const maxSecrets = 5;

/** Names one OAuth client. */
export interface OauthClientKey {
  readonly projectId: string;
  readonly oauthAppId: string;
}

/** An OAuth client ready for use. */
export interface OauthClient {
  readonly oauthAppId: string;
  readonly clientId: string;
  /** In the order in which they are tried; none for a public client. */
  readonly secrets: readonly string[];
}

function ownerOf({ projectId, oauthAppId, appSlug }: OauthClientKey & { readonly appSlug: string }): SecretOwner {
  return { purpose: "oauth-client", projectId, environment: "", externalUserId: "", id: oauthAppId, appSlug };
}

/** A client as it stands: with its breaker (client-breaker.ts) and which secret worked last. */
export interface OauthClientState {
  /** The secret that worked last comes first. */
  readonly client: OauthClient;
  readonly row: Selectable<OauthClientsTable>;
}

/** Opens a client for an app; undefined when there is none, or it is another app's. */
export async function findOauthClient(
  options: { readonly db: VaultDatabase; readonly secrets: Secrets },
  key: OauthClientKey & { readonly appSlug: string },
): Promise<OauthClient | undefined> {
  return (await findOauthClientState(options, key))?.client;
}

/** The same with what is known of it. */
export async function findOauthClientState(
  { db, secrets }: { readonly db: VaultDatabase; readonly secrets: Secrets },
  { projectId, oauthAppId, appSlug }: OauthClientKey & { readonly appSlug: string },
): Promise<OauthClientState | undefined> {
  const row = await selectOauthClient(db, { projectId, oauthAppId }).executeTakeFirst();
  if (row === undefined || row.destroyTime !== null || row.appSlug !== appSlug) return undefined;
  return { client: { oauthAppId, clientId: row.clientId, secrets: await openSecrets(secrets, row) }, row };
}

/** The secrets of a client, that which worked last before the others. */
async function openSecrets(secrets: Secrets, row: Selectable<OauthClientsTable>): Promise<readonly string[]> {
  const { secrets: values } = await secrets.open<{ readonly secrets: readonly string[] }>(ownerOf(row), row);
  return [...values.slice(row.workingSecret), ...values.slice(0, row.workingSecret)];
}

/**
 * Notes that the provider took the client, after it had refused so many of its secrets. Only what is new is written: once after
 * each change of the secrets, and when another of them works. Never throws: what is not noted now is noted by the next use.
 */
export async function noteSecretTaken(
  { db, log }: { readonly db: VaultDatabase; readonly log: Logger },
  { client, row }: OauthClientState,
  refusedSecrets: number,
): Promise<void> {
  const { projectId, oauthAppId, appSlug } = row;
  const count = client.secrets.length;
  if (count === 0 || (refusedSecrets === 0 && row.workingSecretTime !== null)) return;
  const taken = (row.workingSecret + refusedSecrets) % count;
  const line = { projectId, oauthAppId, appSlug, secret: taken + 1, unusedSecrets: count - 1 };
  try {
    if (await updateWorkingSecret(db, row, taken)) {
      log.info(line, "an OAuth client works with this one of its secrets: the others are unused");
    }
  } catch (error) {
    log.warn({ ...line, err: error }, "which secret an OAuth client works with could not be noted");
  }
}

/** False when that is known already, or the client has other secrets by now. */
async function updateWorkingSecret(
  db: VaultDatabase,
  row: Selectable<OauthClientsTable>,
  taken: number,
): Promise<boolean> {
  const { numUpdatedRows } = await db
    .updateTable("oauthClients")
    .set({ workingSecret: taken, workingSecretTime: sql<Date>`now()` })
    .where("projectId", "=", row.projectId)
    .where("oauthAppId", "=", row.oauthAppId)
    .where("generation", "=", row.generation)
    .where(({ eb }) => eb.or([eb("workingSecretTime", "is", null), eb("workingSecret", "<>", taken)]))
    .executeTakeFirst();
  return numUpdatedRows === 1n;
}

/** Whether there is a client for an app; opens nothing. */
export async function hasOauthClient(
  db: VaultDatabase,
  { projectId, oauthAppId, appSlug }: OauthClientKey & { readonly appSlug: string },
): Promise<boolean> {
  const row = await selectOauthClient(db, { projectId, oauthAppId }).executeTakeFirst();
  return row !== undefined && row.destroyTime === null && row.appSlug === appSlug;
}

/** Stores a client, or changes it: its secrets are replaced, or with `keepSecrets` stay behind the new ones. */
export async function putOauthClient(
  { db, secrets }: { readonly db: VaultDatabase; readonly secrets: Secrets },
  client: OauthClientKey & OauthClient & { readonly appSlug: string; readonly keepSecrets?: boolean },
  actor: Actor,
): Promise<void> {
  const { projectId, oauthAppId, appSlug, clientId } = client;
  const owner = ownerOf(client);
  const key = await secrets.prepare(owner);
  // Opened before the transaction, which must not wait for a key provider; it begins again when they are others by then.
  const kept = client.keepSecrets ? await findSecrets({ db, secrets }, client) : undefined;
  await db.transaction().execute(async (transaction) => {
    const existing = await selectOauthClient(transaction, client).forUpdate().executeTakeFirst();
    if (kept !== undefined && kept.generation !== existing?.generation) throw concurrentChange();
    const generation = nextGeneration(existing);
    const values = [...new Set([...client.secrets, ...(kept?.values ?? [])])].slice(0, maxSecrets);
    const sealed = sealWith(key, owner, generation, { secrets: values });
    const columns = {
      ...{ appSlug, clientId, generation, ...sealed, destroyTime: null, updateTime: sql<Date>`now()` },
      // Nothing is known of the new secrets yet.
      ...{ rejections: 0, probeTime: null, workingSecret: 0, workingSecretTime: null },
    };
    const { numInsertedOrUpdatedRows } = await transaction
      .insertInto("oauthClients")
      .values({ projectId, oauthAppId, ...columns })
      .onConflict((conflict) =>
        conflict
          .columns(["projectId", "oauthAppId"])
          .doUpdateSet(columns)
          .where("oauthClients.generation", "=", generation - 1n),
      )
      .executeTakeFirst();
    // Of two first writes at once the second carries a generation that is taken.
    if (numInsertedOrUpdatedRows !== 1n) throw concurrentChange();
    await releaseWaiting(transaction, client);
    await insertAuditEntries(transaction, { action: "oauth_client.put", actor, projectId, accountId: oauthAppId });
  });
}

/** The secrets that a client has, none after it was destroyed, and the generation that they are of. */
async function findSecrets(
  { db, secrets }: { readonly db: VaultDatabase; readonly secrets: Secrets },
  key: OauthClientKey,
): Promise<{ readonly values: readonly string[]; readonly generation: bigint | undefined }> {
  const row = await selectOauthClient(db, key).executeTakeFirst();
  if (row === undefined || row.destroyTime !== null) return { values: [], generation: row?.generation };
  return { values: await openSecrets(secrets, row), generation: row.generation };
}

/** Wipes a client's secrets. A repeat, or a client that is not there, changes nothing. */
export async function destroyOauthClient(
  db: VaultDatabase,
  { projectId, oauthAppId }: OauthClientKey,
  actor: Actor,
): Promise<void> {
  await db.transaction().execute(async (transaction) => {
    const { numUpdatedRows } = await transaction
      .updateTable("oauthClients")
      .set({ ...wiped, destroyTime: sql<Date>`now()`, updateTime: sql<Date>`now()` })
      .where("projectId", "=", projectId)
      .where("oauthAppId", "=", oauthAppId)
      .where("destroyTime", "is", null)
      .executeTakeFirst();
    if (numUpdatedRows === 0n) return;
    await insertAuditEntries(transaction, {
      action: "oauth_client.destroyed",
      actor,
      projectId,
      accountId: oauthAppId,
    });
  });
}

function concurrentChange(): StatusError {
  return new StatusError("ABORTED", "CONCURRENT_CHANGE", "Changed meanwhile.");
}

function nextGeneration(row: Selectable<OauthClientsTable> | undefined): bigint {
  return (row?.generation ?? 0n) + 1n;
}

function selectOauthClient(db: VaultDatabase, { projectId, oauthAppId }: OauthClientKey) {
  return db
    .selectFrom("oauthClients")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("oauthAppId", "=", oauthAppId);
}
