// The table of connections: one attempt of a user to connect an account through a provider's pages. It begins PENDING and
// ends once, SUCCEEDED or FAILED; whoever comes later gets the end that was written first.
import { notFound } from "#libs/errors.ts";
import type { AccountDatabase, ConnectionRow } from "./schema.ts";

/** What a new connection is to be. */
export type NewConnection = Omit<ConnectionRow, "state" | "error">;

export async function insertConnection(db: AccountDatabase, connection: NewConnection): Promise<void> {
  await db
    .insertInto("connections")
    .values({ ...connection, state: "PENDING", error: "" })
    .execute();
}

/** The connection with this id; one of another user counts as absent when a user is given. */
export async function getConnection(
  db: AccountDatabase,
  key: { readonly projectId: string; readonly environment: number; readonly externalUserId: string },
  id: string,
): Promise<ConnectionRow> {
  const row = await db
    .selectFrom("connections")
    .selectAll()
    .where("projectId", "=", key.projectId)
    .where("id", "=", id)
    .executeTakeFirst();
  if (row === undefined || row.environment !== key.environment) throw notFound("connection");
  if (key.externalUserId !== "" && row.externalUserId !== key.externalUserId) throw notFound("connection");
  return row;
}

/** The connection whose `state` parameter has this digest. */
export async function getConnectionByState(db: AccountDatabase, stateDigest: Buffer): Promise<ConnectionRow> {
  const row = await db.selectFrom("connections").selectAll().where("stateDigest", "=", stateDigest).executeTakeFirst();
  if (row === undefined) throw notFound("connection");
  return row;
}

/** Keeps others from ending the connection until the transaction does; false when it has ended already. */
export async function lockPendingConnection(
  tx: AccountDatabase,
  { projectId, id }: Pick<ConnectionRow, "projectId" | "id">,
): Promise<boolean> {
  const row = await tx
    .selectFrom("connections")
    .select("id")
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "=", "PENDING")
    .forUpdate()
    .executeTakeFirst();
  return row !== undefined;
}

/** Ends a pending connection: FAILED with an error text, else SUCCEEDED. Undefined when it has ended already. */
export async function endConnection(
  db: AccountDatabase,
  { projectId, id }: Pick<ConnectionRow, "projectId" | "id">,
  error?: string,
): Promise<ConnectionRow | undefined> {
  return db
    .updateTable("connections")
    .set(error === undefined ? { state: "SUCCEEDED" } : { state: "FAILED", error })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "=", "PENDING")
    .returningAll()
    .executeTakeFirst();
}
