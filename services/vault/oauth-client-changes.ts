// Changes of the projects' OAuth clients: put, replaced, destroyed. What the outbox took over from credentials is revoked with the
// client that the project has; before that one goes, it is sealed with it (sealed-anew.ts), once without holding the client, for
// there can be thousands, and once more, for what came meanwhile, while those who destroy wait for it.
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
import { sealWithClient } from "./sealed-anew.ts";
import { type Secrets, sealWith, wiped } from "./secrets.ts";

interface ChangeOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
}

/** As many as the contract lets a request bring. */
const maxSecrets = 5;

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
  const before = await selectOauthClient(db, client).executeTakeFirst();
  if (isAnother(before, client)) await sealWithClient({ db, secrets }, client);
  const kept = client.keepSecrets ? await findSecrets({ db, secrets }, client) : undefined;
  await db.transaction().execute(async (transaction) => {
    const existing = await selectOauthClient(transaction, client).forUpdate().executeTakeFirst();
    if (isAnother(existing, client)) await sealWithClient({ db: transaction, secrets }, client);
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
  await sealWithClient({ db, secrets }, { projectId, oauthAppId });
  await db.transaction().execute(async (transaction) => {
    // What was destroyed since: those who destroy hold the client.
    await selectOauthClient(transaction, { projectId, oauthAppId }).forUpdate().executeTakeFirst();
    await sealWithClient({ db: transaction, secrets }, { projectId, oauthAppId });
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

/** Whether the client that is put takes the place of another one: a grant is of one client id and no other. */
function isAnother(
  row: Selectable<OauthClientsTable> | undefined,
  { clientId, appSlug }: Pick<OauthClientsTable, "clientId" | "appSlug">,
): boolean {
  return row !== undefined && row.destroyTime === null && (row.clientId !== clientId || row.appSlug !== appSlug);
}

function concurrentChange(): StatusError {
  return new StatusError("ABORTED", "CONCURRENT_CHANGE", "Changed meanwhile.");
}

function nextGeneration(row: Selectable<OauthClientsTable> | undefined): bigint {
  return (row?.generation ?? 0n) + 1n;
}
