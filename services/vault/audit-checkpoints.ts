// The tables of checkpoints and of the entries that wait for one. One statement puts both right: see audit-sealer.ts.
import { type Selectable, sql } from "kysely";
import type { AuditEntry } from "./audit-chain.ts";
import type { AuditCheckpointsTable, VaultDatabase } from "./schema.ts";

/** A row of the table. */
export type CheckpointRow = Selectable<AuditCheckpointsTable>;

/** Whether entries wait for a checkpoint. */
export async function hasPendingEntries(db: VaultDatabase): Promise<boolean> {
  return (await db.selectFrom("auditPending").select("id").limit(1).executeTakeFirst()) !== undefined;
}

/** Takes the right to seal until the transaction ends; false when another process has it. */
export async function lockSealing(transaction: VaultDatabase): Promise<boolean> {
  const { rows } = await sql<{ locked: boolean }>`
    select pg_try_advisory_xact_lock(hashtextextended('audit_checkpoints', 0)) as locked`.execute(transaction);
  return rows[0]?.locked === true;
}

/** The entries that wait, in the order in which they are sealed. */
export async function listPendingEntries(db: VaultDatabase, limit: number): Promise<readonly AuditEntry[]> {
  return (
    db
      .selectFrom("auditEntries")
      .selectAll()
      // Of the array Postgres takes it that it is short, and looks its entries up one by one, however many entries there are.
      .where("id", "=", sql<bigint>`any(array(select id from audit_pending order by id limit ${limit}))`)
      .orderBy("id")
      .execute()
  );
}

/** The newest checkpoint; undefined before the first. */
export async function findHead(db: VaultDatabase): Promise<Pick<CheckpointRow, "number" | "hash"> | undefined> {
  return db
    .selectFrom("auditCheckpoints")
    .select(["number", "hash"])
    .orderBy("number", "desc")
    .limit(1)
    .executeTakeFirst();
}

/** Adds a checkpoint and takes its entries off the list. */
export async function insertCheckpoint(
  transaction: VaultDatabase,
  { entryIds, entryHashes, ...checkpoint }: CheckpointRow,
): Promise<void> {
  await transaction
    .insertInto("auditCheckpoints")
    .values({ ...checkpoint, entryIds: [...entryIds], entryHashes: [...entryHashes] })
    .execute();
  await transaction
    .deleteFrom("auditPending")
    .where("id", "=", sql<bigint>`any(${[...entryIds]})`)
    .execute();
}
