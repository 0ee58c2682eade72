// Changes of the projects' OAuth clients: put, replaced, destroyed. What the outbox took over from credentials is revoked with the
// client that the project has, so before that one goes, it is sealed with it (sealed-anew.ts). That is done without holding the
// client, for there can be thousands, and a key service may be slow; those who destroy hold it, so that nothing can come after a
// look that found none left.
import { type Selectable, sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import { type Actor, insertAuditEntries } from "./audit-entries.ts";
import { releaseWaiting } from "./client-breaker.ts";
import {
  clientOwner,
  type OauthClient,
  type OauthClientKey,
  openClientSecrets,
  selectOauthClient,
} from "./oauth-clients.ts";
import type { OauthClientsTable, VaultDatabase } from "./schema.ts";
import { hasTakenOver, sealWithClient } from "./sealed-anew.ts";
import { type Secrets, sealWith, wiped } from "./secrets.ts";

interface ChangeOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
}

/** As many as the contract lets a request bring. */
const maxSecrets = 5;

// Each can lose to accounts that are being destroyed; the first only looks.
const mostRounds = 10;

/** Stores a client, or changes it: its secrets are replaced, or with `keepSecrets` stay behind the new ones. */
export async function putOauthClient(
  { db, secrets }: ChangeOptions,
  client: OauthClientKey & OauthClient & { readonly appSlug: string; readonly keepSecrets?: boolean },
  actor: Actor,
): Promise<void> {
  const { projectId, oauthAppId, appSlug, clientId } = client;
  const owner = clientOwner(client);
  const key = await secrets.prepare(owner);
  // Opened before the transaction, which must not wait for a key provider; it begins again when they are others by then.
  const kept = client.keepSecrets ? await findSecrets({ db, secrets }, client) : undefined;
  const isAnother = (row: ClientRow) => row.clientId !== clientId || row.appSlug !== appSlug;
  await whenLetGo({ db, secrets }, client, isAnother, async (transaction, existing) => {
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
  { db, secrets }: ChangeOptions,
  key: OauthClientKey,
): Promise<{ readonly values: readonly string[]; readonly generation: bigint | undefined }> {
  const row = await selectOauthClient(db, key).executeTakeFirst();
  if (row === undefined || row.destroyTime !== null) return { values: [], generation: row?.generation };
  return { values: await openClientSecrets(secrets, row), generation: row.generation };
}

/** Wipes a client's secrets. A repeat, or a client that is not there, changes nothing. */
export async function destroyOauthClient(
  { db, secrets }: ChangeOptions,
  { projectId, oauthAppId }: OauthClientKey,
  actor: Actor,
): Promise<void> {
  const always = () => true;
  await whenLetGo({ db, secrets }, { projectId, oauthAppId }, always, async (transaction) => {
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

type ClientRow = Selectable<OauthClientsTable>;

/**
 * Changes a client, which is held, in one transaction. Where it goes, nothing that was taken over is left of it: ABORTED, and
 * nothing changed, when accounts of it are destroyed all the time.
 */
async function whenLetGo(
  options: ChangeOptions,
  key: OauthClientKey,
  goes: (row: ClientRow) => boolean,
  change: (transaction: VaultDatabase, row: ClientRow | undefined) => Promise<void>,
): Promise<void> {
  for (let round = 0; round < mostRounds; round += 1) {
    const isLetGo = await options.db.transaction().execute(async (transaction) => {
      const row = await selectOauthClient(transaction, key).forUpdate().executeTakeFirst();
      const isInUse = row !== undefined && row.destroyTime === null && goes(row);
      if (isInUse && (await hasTakenOver(transaction, key))) return false;
      await change(transaction, row);
      return true;
    });
    if (isLetGo) return;
    await sealWithClient(options, key);
  }
  throw concurrentChange();
}

function concurrentChange(): StatusError {
  return new StatusError("ABORTED", "CONCURRENT_CHANGE", "Changed meanwhile.");
}

function nextGeneration(row: Selectable<OauthClientsTable> | undefined): bigint {
  return (row?.generation ?? 0n) + 1n;
}
