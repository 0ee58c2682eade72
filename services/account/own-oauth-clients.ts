// The table of OAuth clients that end users brought for one account of their own: no other account can be connected with one,
// and no list shows it. The secret is in the vault alone, and is destroyed there once no account has the client.
import { sql } from "kysely";
import type { AccountDatabase, OwnOauthClientRow } from "./schema.ts";

// Longer than a connection can take from its start to its verification.
const unusedAfterMs = 60 * 60_000;

/** Notes a client, before the vault is given its secret. */
export async function insertOwnClient(db: AccountDatabase, row: OwnOauthClientRow): Promise<void> {
  await db.insertInto("ownOauthClients").values(row).execute();
}

/** Some of the clients that no account has: it was never made, was revoked, or was connected again with another. */
export async function listUnusedClients(
  db: AccountDatabase,
  time: Date,
  limit: number,
): Promise<readonly OwnOauthClientRow[]> {
  return db
    .selectFrom("ownOauthClients as own")
    .selectAll()
    .where("createTime", "<", new Date(time.getTime() - unusedAfterMs))
    .where(
      sql<boolean>`not exists (select from accounts account where account.project_id = own.project_id
        and account.id = own.account_id and account.oauth_app_id = own.oauth_app_id and account.state <> 'REVOKED')`,
    )
    .orderBy("createTime")
    .limit(limit)
    .execute();
}

/** Forgets a client whose secret is gone. */
export async function deleteOwnClient(
  db: AccountDatabase,
  { projectId, oauthAppId }: Pick<OwnOauthClientRow, "projectId" | "oauthAppId">,
): Promise<void> {
  await db
    .deleteFrom("ownOauthClients")
    .where("projectId", "=", projectId)
    .where("oauthAppId", "=", oauthAppId)
    .execute();
}
