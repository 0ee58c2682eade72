// Erases a user from the vault: destroys what still lives, such as credentials that no account ever named, and puts a pseudonym
// in the place of the user's id. Rows stay, as the tombstones that a receipt or a restore needs. What is done may be repeated.
//
// A grant whose provider is still to be told lies sealed, bound to the user's id: it is sealed anew under the pseudonym, so that
// nobody has to wait seven days for the id to go. The digest of the provider's name for its user goes with it, except where it
// is still needed to tell whose grant a revocation at the provider ends.
//
// The audit keeps the id: its entries are chained and signed, and cannot be changed without breaking the proof that they are.
import { sql } from "kysely";
import { type Actor, insertAuditEntries } from "./audit-entries.ts";
import { failAuthorizationsOfUser } from "./authorizations.ts";
import { type DestroyOptions, destroyCredentials } from "./destroy.ts";
import type { EnvironmentName, VaultDatabase } from "./schema.ts";
import { sealUnderPseudonym } from "./sealed-anew.ts";
import type { Secrets } from "./secrets.ts";

/** What erasing needs. */
export interface EraseOptions extends DestroyOptions {
  readonly secrets: Secrets;
}

/** The user, and what stands for it from now on. */
export interface ErasureRequest {
  readonly projectId: string;
  readonly environment: EnvironmentName;
  readonly externalUserId: string;
  readonly pseudonym: string;
  /** Who asks. */
  readonly actor: Actor;
}

const batchSize = 200;

/** Erases; gives how many credentials were destroyed on the way. */
export async function eraseUser(options: EraseOptions, request: ErasureRequest): Promise<number> {
  const { db } = options;
  // First: from here on no code that the user brings back is exchanged, and no token kept.
  let changed = await failAuthorizationsOfUser(db, request, request.pseudonym);
  const destroyed = await destroyRemains(options, request);
  changed += await sealUnderPseudonym(options, request, request.pseudonym);
  await db.transaction().execute(async (transaction) => {
    changed += await renameTombstones(transaction, request);
    if (changed === 0) return;
    const { projectId, environment, pseudonym: externalUserId, actor } = request;
    await insertAuditEntries(transaction, { action: "user.erased", actor, projectId, environment, externalUserId });
  });
  return destroyed;
}

async function destroyRemains(options: DestroyOptions, request: ErasureRequest): Promise<number> {
  const { projectId, environment, actor } = request;
  for (let destroyed = 0; ; ) {
    const rows = await ofUser(options.db.selectFrom("credentials").select("accountId"), request)
      .where("state", "<>", "REVOKED")
      .limit(batchSize)
      .execute();
    if (rows.length === 0) return destroyed;
    const accountIds = rows.map(({ accountId }) => accountId);
    await destroyCredentials(options, { projectId, environment, accountIds, revokeSharedGrant: false, actor });
    destroyed += rows.length;
  }
}

/** Gives how many rows told of the user until now. */
async function renameTombstones(transaction: VaultDatabase, request: ErasureRequest): Promise<number> {
  const renamed = { externalUserId: request.pseudonym };
  const credentials = await ofUser(
    transaction.updateTable("credentials").set({ ...renamed, identityDigest: null }),
    request,
  )
    .where("state", "=", "REVOKED")
    .executeTakeFirst();
  const isOver = sql<boolean>`state in ('DONE', 'FAILED')`;
  const revocations = await ofUser(
    transaction
      .updateTable("revocations")
      .set({ ...renamed, identityDigest: sql`case when ${isOver} then null else identity_digest end` }),
    request,
  )
    .where("state", "<>", "PENDING")
    .executeTakeFirst();
  return Number(credentials.numUpdatedRows + revocations.numUpdatedRows);
}

function ofUser<Query extends { where(column: string, operator: "=", value: string): Query }>(
  query: Query,
  { projectId, environment, externalUserId }: ErasureRequest,
): Query {
  return query
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .where("externalUserId", "=", externalUserId);
}
