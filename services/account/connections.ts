// The table of connections: one attempt of a user to connect an account through a page. Whoever comes after its end gets the
// end that was written first:
//
//   PENDING -> SUCCEEDED | FAILED(error)
//   PENDING -> AWAITING_VERIFICATION -> SUCCEEDED | FAILED(error)     where the connect token asks for it: verify-connection.ts
import { type Expression, type SqlBool, sql } from "kysely";
import { isAdministrator } from "#libs/callers.ts";
import { notFound } from "#libs/errors.ts";
import type { CredentialFacts } from "./accounts.ts";
import { type Actor, allowedRows } from "./member-rights.ts";
import { holdProject } from "./projects.ts";
import type { AccountDatabase, ConnectionRow } from "./schema.ts";

type OpenState = "PENDING" | "AWAITING_VERIFICATION";
type ConnectionKey = Pick<ConnectionRow, "projectId" | "id">;

/** What a new connection is to be. */
export type NewConnection = Omit<ConnectionRow, "state" | "error" | keyof typeof nothingWaits>;

/** What is kept of a connection until it is verified. */
export type Unverified = Pick<ConnectionRow, keyof typeof nothingWaits | "expireTime">;

const nothingWaits = { verifierDigest: null, accountName: "", authorizedScopes: [], ...waitingFacts({}) };

/** What the vault told of the credential, as it waits with the connection. */
export function waitingFacts(facts: Partial<CredentialFacts>) {
  return {
    credentialGeneration: facts.credentialGeneration ?? null,
    credentialExpireTime: facts.expireTime ?? null,
    lastRefreshTime: facts.lastRefreshTime ?? null,
    nextRefreshTime: facts.nextRefreshTime ?? null,
    grantExpireTime: facts.grantExpireTime ?? null,
    grantNoticeTime: facts.grantNoticeTime ?? null,
  };
}

/** Begins a connection; with what is kept until it is verified, when the user has agreed already. */
export async function insertConnection(
  db: AccountDatabase,
  connection: NewConnection,
  unverified?: Unverified,
): Promise<void> {
  const begun = { state: "PENDING", error: "", ...nothingWaits } as const;
  await db
    .insertInto("connections")
    .values({ ...connection, ...begun, ...(unverified && { ...unverified, state: "AWAITING_VERIFICATION" }) })
    .execute();
}

/** The connection with this id; one of another user counts as absent when a user is given, and one that the member may not see. */
export async function getConnection(
  db: AccountDatabase,
  key: { readonly projectId: string; readonly environment: number; readonly externalUserId: string },
  id: string,
  actor?: Actor,
): Promise<ConnectionRow> {
  const row = await db
    .selectFrom("connections")
    .selectAll()
    .where("projectId", "=", key.projectId)
    .where("id", "=", id)
    .where(visibleTo(actor))
    .executeTakeFirst();
  if (row === undefined || row.environment !== key.environment) throw notFound("connection");
  if (key.externalUserId !== "" && row.externalUserId !== key.externalUserId) throw notFound("connection");
  return row;
}

/** What a member may see of its account, or what that will be: its owner's is the member whose connect token it is. */
function visibleTo(actor: Actor): Expression<SqlBool> {
  if (actor === undefined || isAdministrator(actor)) return sql`true`;
  return sql`coalesce(
    (select ${allowedRows({ actor, operation: "view" })} from accounts
      where accounts.project_id = connections.project_id and accounts.id = connections.account_id),
    (select actor_member_id in ('', ${actor.memberId}) from connect_tokens
      where connect_tokens.project_id = connections.project_id and connect_tokens.id = connections.connect_token_id),
    false)`;
}

/** The connection whose `state` parameter has this digest. */
export async function getConnectionByState(db: AccountDatabase, stateDigest: Buffer): Promise<ConnectionRow> {
  const row = await db.selectFrom("connections").selectAll().where("stateDigest", "=", stateDigest).executeTakeFirst();
  if (row === undefined) throw notFound("connection");
  return row;
}

/**
 * Keeps others from ending the connection until the transaction does; false when it is not in that state any more. It holds
 * the project first, as whoever deletes one does.
 */
export async function lockConnection(
  tx: AccountDatabase,
  { projectId, id }: ConnectionKey,
  state: OpenState,
): Promise<boolean> {
  await holdProject(tx, projectId);
  const row = await tx
    .selectFrom("connections")
    .select("id")
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "=", state)
    .forUpdate()
    .executeTakeFirst();
  return row !== undefined;
}

/** The user has agreed; the rest waits for the product's word. The transaction holds the connection. */
export async function awaitVerification(
  tx: AccountDatabase,
  { projectId, id }: ConnectionKey,
  unverified: Unverified,
): Promise<ConnectionRow> {
  return tx
    .updateTable("connections")
    .set({ ...unverified, state: "AWAITING_VERIFICATION" })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "=", "PENDING")
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** Ends an open connection: FAILED with an error text, else SUCCEEDED. Undefined when it has ended already. */
export async function endConnection(
  db: AccountDatabase,
  { projectId, id }: ConnectionKey,
  error?: string,
): Promise<ConnectionRow | undefined> {
  return db
    .updateTable("connections")
    .set(error === undefined ? { state: "SUCCEEDED" } : { state: "FAILED", error })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "in", ["PENDING", "AWAITING_VERIFICATION"])
    .returningAll()
    .executeTakeFirst();
}

/** Fails every open connection of a user, or of all users of the environment when none is named. */
export async function failConnectionsOf(
  db: AccountDatabase,
  { projectId, environment, externalUserId }: Pick<ConnectionRow, "projectId" | "environment" | "externalUserId">,
  error: string,
): Promise<readonly ConnectionRow[]> {
  const open = openConnections(db)
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .$if(externalUserId !== "", (rows) => rows.where("externalUserId", "=", externalUserId))
    .where("state", "in", ["PENDING", "AWAITING_VERIFICATION"]);
  return failAll(db, open, error);
}

/** Fails some of the open connections in a state whose end was before a time; those that somebody is at are left to them. */
export async function failExpiredConnections(
  db: AccountDatabase,
  state: OpenState,
  before: Date,
  limit: number,
  error: string,
): Promise<readonly ConnectionRow[]> {
  const overdue = openConnections(db).where("state", "=", state).where("expireTime", "<=", before);
  return failAll(db, overdue.limit(limit).skipLocked(), error);
}

// In one order whoever locks several, so that two never wait for one another.
function openConnections(db: AccountDatabase) {
  return db.selectFrom("connections").select(["projectId", "id"]).orderBy("projectId").orderBy("id").forUpdate();
}

function failAll(db: AccountDatabase, open: ReturnType<typeof openConnections>, error: string) {
  return db
    .with("open", () => open)
    .updateTable("connections")
    .from("open")
    .set({ state: "FAILED", error })
    .whereRef("connections.projectId", "=", "open.projectId")
    .whereRef("connections.id", "=", "open.id")
    .returningAll("connections")
    .execute();
}
