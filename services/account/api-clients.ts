// The table of API clients and the check of their secrets. A secret has 256 random bits, so a plain SHA-256 is enough to
// keep it: there is nothing to guess that a slow hash would protect. A client has one secret, or two during a rotation.
import { timingSafeEqual } from "node:crypto";
import { notFound, StatusError } from "#libs/errors.ts";
import { digest, newId } from "#libs/ids.ts";
import { isAfter, type Page, type PageOf, pageOf } from "./pages.ts";
import type { AccountDatabase, ApiClientRow } from "./schema.ts";

export async function insertApiClient(
  db: AccountDatabase,
  client: Pick<ApiClientRow, "projectId" | "name" | "scopes" | "secretDigest">,
  time: Date,
): Promise<ApiClientRow> {
  const row = { ...client, id: newId("cli"), createTime: time };
  return db.insertInto("apiClients").values(row).returningAll().executeTakeFirstOrThrow();
}

/** Clients in the order in which they were made. */
export async function listApiClients(
  db: AccountDatabase,
  projectId: string,
  page: Page,
): Promise<PageOf<ApiClientRow>> {
  const rows = await db
    .selectFrom("apiClients")
    .selectAll()
    .where("projectId", "=", projectId)
    .where(isAfter(page.after))
    .orderBy("createTime")
    .orderBy("id")
    .limit(page.size + 1)
    .execute();
  return pageOf(rows, page.size, rows.length);
}

/**
 * Puts a new secret in the place of the present one, which works until `overlapEnd`. One that was there before the present one
 * dies now, whatever its time was; with an end that is not after `time` the present one does too.
 */
export async function rotateSecret(
  db: AccountDatabase,
  { projectId, id }: Pick<ApiClientRow, "projectId" | "id">,
  secretDigest: Buffer,
  { time, overlapEnd }: { readonly time: Date; readonly overlapEnd: Date },
): Promise<ApiClientRow> {
  const overlaps = overlapEnd > time;
  const row = await db
    .updateTable("apiClients")
    .set((set) => ({
      secretDigest,
      previousSecretDigest: overlaps ? set.ref("secretDigest") : null,
      previousSecretExpireTime: overlaps ? overlapEnd : null,
    }))
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .returningAll()
    .executeTakeFirst();
  if (row === undefined) throw notFound("API client");
  return row;
}

export async function deleteApiClient(
  db: AccountDatabase,
  { projectId, id }: Pick<ApiClientRow, "projectId" | "id">,
): Promise<ApiClientRow> {
  const row = await db
    .deleteFrom("apiClients")
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .returningAll()
    .executeTakeFirst();
  if (row === undefined) throw notFound("API client");
  return row;
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
