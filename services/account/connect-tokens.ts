// The table of connect tokens: the short-lived right of one external user to connect one account. Only the digest of a
// token is kept.
//
// A token has two lives. Until its end it speaks for its user: it reads that user's accounts and connections and sends
// requests through the proxy. Its right to connect something new is single use: it is claimed in one statement by the
// attempt that it is for (a connection, or one call of CreateAccount), and from then on no other can be started, completed or created with it. A claim
// comes before the vault is asked, so that two connections of one token cannot both be made; it is released when the
// vault refuses for good, so that a user who said no at the provider can try again. When the process dies in between, the
// claim stays with its connection: reloading the redirect goes on, another attempt needs another token.
import { randomBytes } from "node:crypto";
import { StatusError } from "#libs/errors.ts";
import { digest, newId } from "#libs/ids.ts";
import type { AccountDatabase, ConnectTokenRow } from "./schema.ts";

/** What a new token is to be. */
export type NewConnectToken = Omit<ConnectTokenRow, "id" | "token_digest" | "claimed_by">;

/** Makes a token and returns its text, which is kept nowhere. */
export async function insertConnectToken(db: AccountDatabase, token: NewConnectToken): Promise<string> {
  const text = `ctok_${randomBytes(16).toString("hex")}`;
  await db
    .insertInto("connect_tokens")
    .values({ ...token, id: newId("cct"), token_digest: digest(text) })
    .execute();
  return text;
}

/** The token with this text, used or not, unless its end has come. */
export async function findConnectToken(
  db: AccountDatabase,
  text: string,
  time: Date,
): Promise<ConnectTokenRow | undefined> {
  if (!/^ctok_[0-9a-f]{32}$/.test(text)) return undefined;
  return db
    .selectFrom("connect_tokens")
    .selectAll()
    .where("token_digest", "=", digest(text))
    .where("expire_time", ">", time)
    .executeTakeFirst();
}

/** The token with this id, whatever has become of it. */
export async function getConnectToken(db: AccountDatabase, projectId: string, id: string): Promise<ConnectTokenRow> {
  return db
    .selectFrom("connect_tokens")
    .selectAll()
    .where("project_id", "=", projectId)
    .where("id", "=", id)
    .executeTakeFirstOrThrow();
}

/** Gives the token's one use to an attempt; false when another has it. A repeat by the same is true. */
export async function claimConnectToken(
  db: AccountDatabase,
  { project_id, id }: Pick<ConnectTokenRow, "project_id" | "id">,
  attempt: string,
): Promise<boolean> {
  const { numUpdatedRows } = await db
    .updateTable("connect_tokens")
    .set({ claimed_by: attempt })
    .where("project_id", "=", project_id)
    .where("id", "=", id)
    .where((where) => where.or([where("claimed_by", "is", null), where("claimed_by", "=", attempt)]))
    .executeTakeFirst();
  return numUpdatedRows === 1n;
}

/** Gives the use back after nothing came of it. */
export async function releaseConnectToken(
  db: AccountDatabase,
  { project_id, id }: Pick<ConnectTokenRow, "project_id" | "id">,
  attempt: string,
): Promise<void> {
  await db
    .updateTable("connect_tokens")
    .set({ claimed_by: null })
    .where("project_id", "=", project_id)
    .where("id", "=", id)
    .where("claimed_by", "=", attempt)
    .execute();
}

/** One text for a token that never was, has ended, or has been used: none of it is a stranger's business. */
export function invalidConnectToken(): StatusError {
  return new StatusError(
    "UNAUTHENTICATED",
    "CONNECT_TOKEN_INVALID",
    "The connect token is invalid or has expired. Please generate a new one and try again.",
  );
}
