// The table of credentials as destroying goes through it: many rows of one environment are read, held and wiped, each in one
// statement, and what is left of them is what receipts tell.
import { type RawBuilder, sql } from "kysely";
import { type Actor, accountOf, insertAuditEntries } from "./audit-entries.ts";
import { type CredentialRow, withReadTime } from "./credentials.ts";
import type { EnvironmentName, VaultDatabase } from "./schema.ts";

/** Accounts of one environment. */
export interface DestroyFilter {
  readonly projectId: string;
  readonly environment: EnvironmentName;
  readonly accountIds: readonly string[];
}

/** Reads the credentials of several accounts. */
export async function listCredentials(db: VaultDatabase, filter: DestroyFilter): Promise<readonly CredentialRow[]> {
  return withReadTime(db).where(isAmong(filter)).orderBy("accountId").execute();
}

/** Holds the rows, in the order of their accounts, until the transaction ends; gives what tells whether one has changed. */
export async function lockCredentials(
  db: VaultDatabase,
  filter: DestroyFilter,
): Promise<readonly Pick<CredentialRow, "accountId" | "generation" | "state">[]> {
  const rows = db.selectFrom("credentials").select(["accountId", "generation", "state"]);
  return rows.where(isAmong(filter)).orderBy("accountId").forUpdate().execute();
}

/** What is told of destroyed credentials. */
export async function listDestroyed(db: VaultDatabase, filter: DestroyFilter): Promise<readonly DestroyedRow[]> {
  const rows = db.selectFrom("credentials").select(destroyedColumns);
  return rows.where(isAmong(filter)).orderBy("accountId").execute();
}

const destroyedColumns = [
  ...(["projectId", "environment", "externalUserId", "accountId", "appSlug"] as const),
  ...(["generation", "destroyedKinds", "revokeTime"] as const),
] as const;

/** Of a row, what is told when it is destroyed. */
export type DestroyedRow = Pick<CredentialRow, (typeof destroyedColumns)[number]>;

function isAmong({ projectId, environment, accountIds }: DestroyFilter): RawBuilder<boolean> {
  return sql`project_id = ${projectId} and environment = ${environment} and account_id = any(${accountIds})`;
}

/** A credential as it was found, and which kinds of secret are in it. */
export interface Destruction {
  readonly row: CredentialRow;
  readonly destroyedKinds: readonly string[];
}

/** Wipes the secrets of one project's credentials for good. The transaction holds the rows (`lockCredentials`). */
export async function revokeCredentials(
  db: VaultDatabase,
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
    where project_id = ${destructions[0]?.row.projectId ?? ""} and account_id = gone.id and state <> 'REVOKED'`.execute(
    db,
  );
  const action = "credential.destroyed" as const;
  await insertAuditEntries(db, ...destructions.map(({ row }) => ({ action, actor, ...accountOf(row) })));
}
