// What is left of a user who is erased, in this database. Rows that were only about the user are deleted: the user, connect
// tokens, connections, addresses that only they named. Rows that prove something stay, and say so of a pseudonym: accounts as tombstones without a name, events
// without what they told (but that an account was revoked), audit entries without before and after.
//
// The pseudonym is a digest of the user's id: whoever knows the id can find its tombstones, to prove an erasure or to repeat
// one; the id cannot be read from it. It can be guessed by whoever has this database and a list of the ids that may be meant,
// so in the words of the GDPR this is pseudonymisation, kept as proof, and not anonymisation.
import { createHash } from "node:crypto";
import { sql } from "kysely";
import type { AccountDatabase, AccountRow } from "./schema.ts";
import { deleteUnusedConnectionEndpoints } from "./webhook-deliveries.ts";

/** A user of one environment. */
export interface ErasedUser {
  readonly projectId: string;
  readonly environment: AccountRow["environment"];
  readonly externalUserId: string;
}

/** What stands in the place of the user's id. */
export function pseudonymOf({ projectId, environment, externalUserId }: ErasedUser): string {
  const text = JSON.stringify(["deputy-erased-user/1", projectId, environment, externalUserId]);
  return `erased_${createHash("sha256").update(text).digest("hex")}`;
}

/** The tombstones of a user, oldest first: those from before an erasure, and those of one that has been erased. */
export async function listTombstones(db: AccountDatabase, user: ErasedUser): Promise<readonly AccountRow[]> {
  return db
    .selectFrom("accounts")
    .selectAll()
    .where("projectId", "=", user.projectId)
    .where("environment", "=", user.environment)
    .where("externalUserId", "in", [user.externalUserId, pseudonymOf(user)])
    .where("state", "=", sql.lit("REVOKED"))
    .orderBy("createTime")
    .orderBy("id")
    .execute();
}

/** Erases the user from everything here but the accounts that are not REVOKED. Gives whether anything was known of the user. */
export async function eraseUser(tx: AccountDatabase, user: ErasedUser, time: Date): Promise<boolean> {
  const { projectId, environment, externalUserId } = user;
  const pseudonym = pseudonymOf(user);
  const addresses = await webhookUrisOf(tx, user);
  const deletedIds: string[] = [];
  for (const table of ["connections", "connectTokens", "externalUsers"] as const) {
    const deleted = await tx
      .deleteFrom(table)
      .where("projectId", "=", projectId)
      .where("environment", "=", environment)
      .where("externalUserId", "=", externalUserId)
      .returning("id")
      .execute();
    deletedIds.push(...deleted.map(({ id }) => id));
  }
  const tombstones = await tx
    .updateTable("accounts")
    .set({
      ...{ externalUserId: pseudonym, name: "", error: "", authorizedScopes: [], updateTime: time },
      ...{ ownerMemberId: "", sharing: "PRIVATE", sharedMemberIds: [] },
    })
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .where("externalUserId", "=", externalUserId)
    .where("state", "=", sql.lit("REVOKED"))
    .returning("id")
    .execute();
  await tx
    .updateTable("events")
    .set({
      externalUserId: pseudonym,
      data: sql`case when type = 'account.revoked' then data else '{}'::jsonb end`,
    })
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .where("externalUserId", "=", externalUserId)
    .execute();
  await deleteUnusedConnectionEndpoints(tx, user, addresses, time);
  // What is in flight was given up before: the sweep clears it away by the account's id.
  await tx
    .updateTable("accountReservations")
    .set({ externalUserId: pseudonym })
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .where("externalUserId", "=", externalUserId)
    .where("doomed", "=", true)
    .execute();
  const resources = [...deletedIds, ...tombstones.map(({ id }) => id)];
  await sql`select erase_from_audit(${projectId}, ${resources}::text[], ${externalUserId}, ${pseudonym})`.execute(tx);
  return resources.length > 0;
}

/** The addresses that the user's connect tokens named. A product may have put the user's id into them. */
async function webhookUrisOf(tx: AccountDatabase, user: ErasedUser): Promise<readonly string[]> {
  const rows = await tx
    .selectFrom("connectTokens")
    .select("webhookUri")
    .distinct()
    .where("projectId", "=", user.projectId)
    .where("environment", "=", user.environment)
    .where("externalUserId", "=", user.externalUserId)
    .where("webhookUri", "<>", "")
    .execute();
  return rows.map(({ webhookUri }) => webhookUri);
}
