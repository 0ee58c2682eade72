// The table of OAuth clients: a project's own client at a provider, with its ordered secrets sealed.
import { type Selectable, sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import { releaseWaiting } from "./client-breaker.ts";
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

/** A client as it stands: with its breaker (client-breaker.ts) and which secret worked last. */
export interface OauthClientState {
  /** The secret that worked last comes first. */
  readonly client: OauthClient;
  readonly probeTime: Date | null;
  readonly workingSecret: number;
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
  const { secrets: values } = await secrets.open<{ readonly secrets: readonly string[] }>(ownerOf(row), row);
  const { probeTime, workingSecret } = row;
  const ordered = [...values.slice(workingSecret), ...values.slice(0, workingSecret)];
  return { client: { clientId: row.clientId, secrets: ordered }, probeTime, workingSecret };
}

/** Remembers that the provider took another secret, so that the next request begins with it. */
export async function rememberSecret(
  db: VaultDatabase,
  { projectId, oauthAppId }: OauthClientKey,
  { client, workingSecret }: OauthClientState,
  refusedSecrets: number,
): Promise<void> {
  await db
    .updateTable("oauthClients")
    .set({ workingSecret: (workingSecret + refusedSecrets) % client.secrets.length })
    .where("projectId", "=", projectId)
    .where("oauthAppId", "=", oauthAppId)
    .where("workingSecret", "=", workingSecret)
    .execute();
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
    const columns = {
      ...{ appSlug, clientId, generation, ...sealed, destroyTime: null, updateTime: sql<Date>`now()` },
      // Nothing is known of the new secrets yet.
      ...{ rejections: 0, probeTime: null, workingSecret: 0 },
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
    if (numInsertedOrUpdatedRows !== 1n) throw new StatusError("ABORTED", "CONCURRENT_CHANGE", "Changed meanwhile.");
    await releaseWaiting(transaction, client);
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
