// The table of API clients and the check of their secrets. A secret has 256 random bits, so a plain SHA-256 is enough to
// keep it: there is nothing to guess that a slow hash would protect.
import { timingSafeEqual } from "node:crypto";
import { StatusError } from "#libs/errors.ts";
import { digest, newId } from "#libs/ids.ts";
import type { AccountDatabase, ApiClientRow } from "./schema.ts";

export async function insertApiClient(
  db: AccountDatabase,
  client: Pick<ApiClientRow, "projectId" | "name" | "scopes" | "secretDigest">,
  time: Date,
): Promise<ApiClientRow> {
  const row = { ...client, id: newId("cli"), createTime: time };
  return db.insertInto("apiClients").values(row).returningAll().executeTakeFirstOrThrow();
}

/**
 * The client with this secret. A wrong secret and an unknown client are the same UNAUTHENTICATED after the same work, so
 * that nobody learns which clients exist.
 */
export async function authenticateApiClient(
  db: AccountDatabase,
  id: string,
  secret: string,
  time: Date,
): Promise<ApiClientRow> {
  const client = await db.selectFrom("apiClients").selectAll().where("id", "=", id).executeTakeFirst();
  const given = digest(secret);
  const isPresent = timingSafeEqual(given, client?.secretDigest ?? nobodysDigest);
  const isPrevious = timingSafeEqual(given, client?.previousSecretDigest ?? nobodysDigest);
  const previousLives = (client?.previousSecretExpireTime ?? time) > time;
  if (client !== undefined && (isPresent || (isPrevious && previousLives))) return client;
  throw new StatusError("UNAUTHENTICATED", "CLIENT_INVALID", "The client credentials are not valid.");
}

// No text is known whose SHA-256 is this.
const nobodysDigest = Buffer.alloc(32);
