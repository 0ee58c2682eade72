// The table of OAuth clients: a project's own client at a provider, with its ordered secrets sealed.
import { type Selectable, sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import type { OauthClientsTable, VaultDatabase } from "./schema.ts";
import { type SecretOwner, type Secrets, sealWith, wiped } from "./secrets.ts";

/** Names one OAuth client. */
export interface OauthClientKey {
  readonly projectId: string;
  readonly oauthAppId: string;
}

/** An OAuth client ready for use. */
export interface OauthClient {
  readonly clientId: string;
  /** In the order in which they are tried; none for a public client. */
  readonly secrets: readonly string[];
}

function ownerOf({ projectId, oauthAppId, appSlug }: OauthClientKey & { readonly appSlug: string }): SecretOwner {
  return { purpose: "oauth-client", projectId, environment: "", externalUserId: "", id: oauthAppId, appSlug };
}

/** Opens a client for an app; undefined when there is none, or it is another app's. */
export async function findOauthClient(
  { db, secrets }: { readonly db: VaultDatabase; readonly secrets: Secrets },
  { projectId, oauthAppId, appSlug }: OauthClientKey & { readonly appSlug: string },
): Promise<OauthClient | undefined> {
  const row = await selectOauthClient(db, { projectId, oauthAppId }).executeTakeFirst();
  if (row === undefined || row.destroyTime !== null || row.appSlug !== appSlug) return undefined;
  const { secrets: values } = await secrets.open<{ readonly secrets: readonly string[] }>(ownerOf(row), row);
  return { clientId: row.clientId, secrets: values };
}

/** Whether there is a client for an app; opens nothing. */
export async function hasOauthClient(
  db: VaultDatabase,
  { projectId, oauthAppId, appSlug }: OauthClientKey & { readonly appSlug: string },
): Promise<boolean> {
  const row = await selectOauthClient(db, { projectId, oauthAppId }).executeTakeFirst();
  return row !== undefined && row.destroyTime === null && row.appSlug === appSlug;
}

/** Stores a client, or puts other secrets in the place of its own. */
export async function putOauthClient(
  { db, secrets }: { readonly db: VaultDatabase; readonly secrets: Secrets },
  client: OauthClientKey & OauthClient & { readonly appSlug: string },
): Promise<void> {
  const { projectId, oauthAppId, appSlug, clientId } = client;
  const owner = ownerOf(client);
  const key = await secrets.prepare(owner);
  await db.transaction().execute(async (transaction) => {
    const existing = await selectOauthClient(transaction, client).forUpdate().executeTakeFirst();
    const generation = nextGeneration(existing);
    const sealed = sealWith(key, owner, generation, { secrets: client.secrets });
    const columns = { appSlug, clientId, generation, ...sealed, destroyTime: null, updateTime: sql<Date>`now()` };
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
    if (numInsertedOrUpdatedRows !== 1n) throw new StatusError("ABORTED", "CONCURRENT_CHANGE", "Changed meanwhile.");
  });
}

/** Wipes a client's secrets. A repeat, or a client that is not there, changes nothing. */
export async function destroyOauthClient(db: VaultDatabase, { projectId, oauthAppId }: OauthClientKey): Promise<void> {
  await db
    .updateTable("oauthClients")
    .set({ ...wiped, destroyTime: sql<Date>`now()`, updateTime: sql<Date>`now()` })
    .where("projectId", "=", projectId)
    .where("oauthAppId", "=", oauthAppId)
    .where("destroyTime", "is", null)
    .execute();
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
