// The table of OAuth clients: a project's own client at a provider, with its ordered secrets sealed. Each use of a client tries
// them in their order, and begins with the one that the provider took last, whatever it was used for: so a secret is replaced
// without downtime by putting the new one beside the old one, until the log says that the old one is unused.
import { type Selectable, sql } from "kysely";
import type { Logger } from "#libs/log.ts";
import type { OauthClientsTable, VaultDatabase } from "./schema.ts";
import type { SecretOwner, Secrets } from "./secrets.ts";

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

/** What a client's blob is bound to. */
export function clientOwner({
  projectId,
  oauthAppId,
  appSlug,
}: OauthClientKey & { readonly appSlug: string }): SecretOwner {
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
  return { client: { oauthAppId, clientId: row.clientId, secrets: await openClientSecrets(secrets, row) }, row };
}

/** The secrets of a client, that which worked last before the others. */
export async function openClientSecrets(
  secrets: Secrets,
  row: Selectable<OauthClientsTable>,
): Promise<readonly string[]> {
  const { secrets: values } = await secrets.open<{ readonly secrets: readonly string[] }>(clientOwner(row), row);
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

/** Keeps clients as they are until the transaction ends; gives those that are there. Opens nothing. */
export async function holdOauthClients(
  transaction: VaultDatabase,
  projectId: string,
  oauthAppIds: readonly string[],
): Promise<readonly Pick<OauthClientsTable, "oauthAppId" | "appSlug">[]> {
  return transaction
    .selectFrom("oauthClients")
    .select(["oauthAppId", "appSlug"])
    .where("projectId", "=", projectId)
    .where("oauthAppId", "=", sql<string>`any(${oauthAppIds})`)
    .where("destroyTime", "is", null)
    .orderBy("oauthAppId")
    .forShare()
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

/** The row of a client, destroyed or not. */
export function selectOauthClient(db: VaultDatabase, { projectId, oauthAppId }: OauthClientKey) {
  return db
    .selectFrom("oauthClients")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("oauthAppId", "=", oauthAppId);
}
