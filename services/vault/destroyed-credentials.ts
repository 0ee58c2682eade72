// The table of credentials as destroying goes through it: many rows of one environment are read, held and wiped, each in one
// statement, and what is left of them is what receipts tell.
import { type RawBuilder, sql } from "kysely";
import { type Actor, auditedAccount, insertAuditEntriesOf } from "./audit-entries.ts";
import type { CredentialRow } from "./credentials.ts";
import type { EnvironmentName, RevocationsTable, VaultDatabase } from "./schema.ts";
import { wiped } from "./secrets.ts";

/** Accounts of one environment. */
export interface DestroyFilter {
  readonly projectId: string;
  readonly environment: EnvironmentName;
  readonly accountIds: readonly string[];
}

const livingColumns = ["projectId", "accountId", "appSlug", "oauthAppId", "shadow"] as const;

/** Of a row that is not destroyed, what has to be known to destroy it. */
export type LivingRow = Pick<CredentialRow, (typeof livingColumns)[number]>;

/** Holds what is not destroyed yet, in the order of the accounts, until the transaction ends. */
export async function lockCredentials(db: VaultDatabase, filter: DestroyFilter): Promise<readonly LivingRow[]> {
  const rows = db.selectFrom("credentials").select(livingColumns);
  return rows.where(isAmong(filter)).where("state", "<>", "REVOKED").orderBy("accountId").forUpdate().execute();
}

const destroyedColumns = [
  ...(["projectId", "environment", "externalUserId", "accountId", "appSlug"] as const),
  ...(["generation", "destroyedKinds", "revokeTime"] as const),
] as const;

/** What is told of a credential that was destroyed, and what its provider knows of that. */
export interface DestroyedCredential extends Pick<CredentialRow, (typeof destroyedColumns)[number] | "readTime"> {
  readonly providerRevocation: "NOT_APPLICABLE" | RevocationsTable["state"];
}

/** Reads what is told of destroyed credentials. */
export async function listDestroyed(db: VaultDatabase, filter: DestroyFilter): Promise<readonly DestroyedCredential[]> {
  return db
    .selectFrom("credentials")
    .select(destroyedColumns)
    .select(sql<Date>`clock_timestamp()`.as("readTime"))
    .select(
      sql<DestroyedCredential["providerRevocation"]>`coalesce(${newestRevocation}, 'NOT_APPLICABLE')`.as(
        "providerRevocation",
      ),
    )
    .where(isAmong(filter))
    .where("state", "=", "REVOKED")
    .orderBy("accountId")
    .execute();
}

const newestRevocation = sql`(select of.state from revocations of
  where of.project_id = credentials.project_id and of.account_id = credentials.account_id
  order by of.create_time desc limit 1)`;

function isAmong({ projectId, environment, accountIds }: DestroyFilter): RawBuilder<boolean> {
  return sql`project_id = ${projectId} and environment = ${environment} and account_id = any(${accountIds})`;
}

/** Wipes the secrets of credentials for good. The transaction holds the rows (`lockCredentials`). */
export async function revokeCredentials(db: VaultDatabase, filter: DestroyFilter, actor: Actor): Promise<void> {
  const time = sql<Date>`now()`;
  const destroyed = db
    .updateTable("credentials")
    .set({
      ...{ ...wiped, secretKinds: sql<string[]>`'{}'`, destroyedKinds: sql<string[]>`secret_kinds` },
      ...{ state: "REVOKED", stateReason: "DESTROYED", generation: sql<bigint>`generation + 1` },
      ...{ nextRefreshTime: null, retryTime: null, revokeTime: time, updateTime: time },
    })
    .where(isAmong(filter))
    .returning(auditedAccount);
  await insertAuditEntriesOf(db, destroyed, { action: "credential.destroyed", actor });
}
