// The table of credentials as destroying goes through it: many rows of one environment are read, held and wiped, each in one
// statement, and what is left of them is what receipts tell.
import { type RawBuilder, sql } from "kysely";
import { type Actor, auditedAccount, insertAuditEntriesOf } from "./audit-entries.ts";
import type { CredentialRow } from "./credentials.ts";
import type { EnvironmentName, RevocationsTable, VaultDatabase } from "./schema.ts";

/** Accounts of one environment. */
export interface DestroyFilter {
  readonly projectId: string;
  readonly environment: EnvironmentName;
  readonly accountIds: readonly string[];
}

const livingColumns = [
  ...(["projectId", "environment", "externalUserId", "accountId", "appSlug", "oauthAppId", "identityDigest"] as const),
  ...(["state", "shadow", "generation", "blob", "dataKeyId", "wrappedDataKey", "kekId"] as const),
] as const;

/** Of a row, what has to be known to destroy it. */
export type LivingRow = Pick<CredentialRow, (typeof livingColumns)[number]>;

/** Reads the credentials of several accounts, those that are destroyed among them. */
export async function listCredentials(db: VaultDatabase, filter: DestroyFilter): Promise<readonly LivingRow[]> {
  const rows = db.selectFrom("credentials").select(livingColumns);
  return rows.where(isAmong(filter)).orderBy("accountId").execute();
}

/** Holds the rows, in the order of their accounts, until the transaction ends; gives what tells whether one has changed. */
export async function lockCredentials(
  db: VaultDatabase,
  filter: DestroyFilter,
): Promise<readonly Pick<CredentialRow, "accountId" | "generation" | "state">[]> {
  const rows = db.selectFrom("credentials").select(["accountId", "generation", "state"]);
  return rows.where(isAmong(filter)).orderBy("accountId").forUpdate().execute();
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
    .orderBy("accountId")
    .execute();
}

const newestRevocation = sql`(select of.state from revocations of
  where of.project_id = credentials.project_id and of.account_id = credentials.account_id
  order by of.create_time desc limit 1)`;

function isAmong({ projectId, environment, accountIds }: DestroyFilter): RawBuilder<boolean> {
  return sql`project_id = ${projectId} and environment = ${environment} and account_id = any(${accountIds})`;
}

/** A credential as it was found, and which kinds of secret are in it. */
export interface Destruction {
  readonly row: LivingRow;
  readonly destroyedKinds: readonly string[];
}

/** Wipes the secrets of credentials for good, all of one environment. The transaction holds the rows (`lockCredentials`). */
export async function revokeCredentials(
  db: VaultDatabase,
  filter: DestroyFilter,
  destructions: readonly Destruction[],
  actor: Actor,
): Promise<void> {
  const ids = destructions.map(({ row }) => row.accountId);
  const kinds = destructions.map(({ destroyedKinds }) => destroyedKinds.join(" "));
  await sql`
    update credentials
    set blob = null, data_key_id = null, wrapped_data_key = null, kek_id = null,
      state = 'REVOKED', state_reason = 'DESTROYED', destroyed_kinds = string_to_array(gone.kinds, ' '),
      generation = generation + 1, next_refresh_time = null, retry_time = null, revoke_time = now(), update_time = now()
    from unnest(${ids}::text[], ${kinds}::text[]) as gone (id, kinds)
    where project_id = ${filter.projectId} and account_id = gone.id and state <> 'REVOKED'`.execute(db);
  const destroyed = db
    .selectFrom("credentials")
    .select(auditedAccount)
    .where(isAmong({ ...filter, accountIds: ids }));
  await insertAuditEntriesOf(db, destroyed, { action: "credential.destroyed", actor });
}
