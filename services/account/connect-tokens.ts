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
import type { TokenIdentity } from "#libs/callers.ts";
import { StatusError } from "#libs/errors.ts";
import { digest, newId } from "#libs/ids.ts";
import type { Actor } from "./member-rights.ts";
import type { AccountDatabase, ConnectTokenRow } from "./schema.ts";

/** What a new token is to be. */
export type NewConnectToken = Omit<
  ConnectTokenRow,
  "id" | "tokenDigest" | "claimedBy" | "actorMemberId" | "actorRole"
> &
  Partial<Pick<ConnectTokenRow, "actorMemberId" | "actorRole">>;

/** Makes a token and gives its id and its text, which is kept nowhere. */
export async function insertConnectToken(
  db: AccountDatabase,
  token: NewConnectToken,
): Promise<{ readonly id: string; readonly text: string }> {
  const id = newId("cct");
  const text = `ctok_${randomBytes(16).toString("hex")}`;
  await db
    .insertInto("connectTokens")
    .values({ ...token, id, tokenDigest: digest(text) })
    .execute();
  return { id, text };
}

/** The token with this text, used or not, unless its end has come. */
export async function findConnectToken(
  db: AccountDatabase,
  text: string,
  time: Date,
): Promise<ConnectTokenRow | undefined> {
  if (!/^ctok_[0-9a-f]{32}$/.test(text)) return undefined;
  return db
    .selectFrom("connectTokens")
    .selectAll()
    .where("tokenDigest", "=", digest(text))
    .where("expireTime", ">", time)
    .executeTakeFirst();
}

/** The member for whom the token's bearer acts: the one for whom its maker did. */
export function actorOfToken({ actorMemberId, actorRole }: ConnectTokenRow): Actor {
  return actorMemberId === "" ? undefined : { memberId: actorMemberId, role: actorRole };
}

/** The token with this id, whatever has become of it. */
export async function getConnectToken(db: AccountDatabase, projectId: string, id: string): Promise<ConnectTokenRow> {
  return db
    .selectFrom("connectTokens")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .executeTakeFirstOrThrow();
}

/** The unused connect token that the caller came with; undefined for a caller with a right of its own. */
export async function findUsableConnectToken(
  db: AccountDatabase,
  caller: TokenIdentity | undefined,
  time: Date,
): Promise<ConnectTokenRow | undefined> {
  if (caller?.externalUserId === undefined) return undefined;
  const row = await getConnectToken(db, caller.projectId, caller.subject);
  if (row.claimedBy !== null || row.expireTime <= time) throw invalidConnectToken();
  return row;
}

/** Keeps the token from being used or ended until the transaction does; false when it was. */
export async function lockUsableConnectToken(
  tx: AccountDatabase,
  { projectId, id }: Pick<ConnectTokenRow, "projectId" | "id">,
  time: Date,
): Promise<boolean> {
  const row = await tx
    .selectFrom("connectTokens")
    .select("id")
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("claimedBy", "is", null)
    .where("expireTime", ">", time)
    .forUpdate()
    .executeTakeFirst();
  return row !== undefined;
}

/** Gives the token's one use to an attempt; false when another has it. A repeat by the same is true. */
export async function claimConnectToken(
  db: AccountDatabase,
  { projectId, id }: Pick<ConnectTokenRow, "projectId" | "id">,
  attempt: string,
): Promise<boolean> {
  const { numUpdatedRows } = await db
    .updateTable("connectTokens")
    .set({ claimedBy: attempt })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where((where) => where.or([where("claimedBy", "is", null), where("claimedBy", "=", attempt)]))
    .executeTakeFirst();
  return numUpdatedRows === 1n;
}

/** Ends a user's tokens, or those of all users of the environment when none is named: they speak for nobody any more. */
export async function endConnectTokens(
  db: AccountDatabase,
  { projectId, environment, externalUserId }: Pick<ConnectTokenRow, "projectId" | "environment" | "externalUserId">,
  time: Date,
): Promise<void> {
  // In one order whoever locks several, so that two never wait for one another.
  const living = db
    .selectFrom("connectTokens")
    .select("id")
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .$if(externalUserId !== "", (rows) => rows.where("externalUserId", "=", externalUserId))
    .where("expireTime", ">", time)
    .orderBy("id")
    .forUpdate();
  await db
    .with("living", () => living)
    .updateTable("connectTokens")
    .from("living")
    // Claimed by nothing that could use it: a connection that was begun with it cannot take its one use any more.
    .set((set) => ({ expireTime: time, claimedBy: set.fn.coalesce("claimedBy", set.val("ended")) }))
    .where("connectTokens.projectId", "=", projectId)
    .whereRef("connectTokens.id", "=", "living.id")
    .execute();
}

/** Gives the use back after nothing came of it. */
export async function releaseConnectToken(
  db: AccountDatabase,
  { projectId, id }: Pick<ConnectTokenRow, "projectId" | "id">,
  attempt: string,
): Promise<void> {
  await db
    .updateTable("connectTokens")
    .set({ claimedBy: null })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("claimedBy", "=", attempt)
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
