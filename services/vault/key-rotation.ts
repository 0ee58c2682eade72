// Two small tables about key-encryption keys (KEKs): the one that everything is to be wrapped under, and the ones that each
// running vault process holds, by its own report.
import { sql } from "kysely";
import type { VaultDatabase } from "./schema.ts";

// Six reports missed: a process that cannot reach the database for so long serves nobody either.
const silentSeconds = 30;

/** Sets the KEK that everything is to be wrapped under. */
export async function putRotationTarget(db: VaultDatabase, kekId: string): Promise<void> {
  await db
    .insertInto("keyRotation")
    .values({ kekId })
    .onConflict((conflict) => conflict.column("id").doUpdateSet({ kekId, requestTime: sql<Date>`now()` }))
    .execute();
}

/** The KEK that everything is to be wrapped under; undefined when no rotation was ever asked for. */
export async function findRotationTarget(db: VaultDatabase): Promise<string | undefined> {
  return (await db.selectFrom("keyRotation").select("kekId").executeTakeFirst())?.kekId;
}

/** Notes which KEKs a process holds now; forgets processes that are long gone. */
export async function reportKeks(db: VaultDatabase, processId: string, kekIds: readonly string[]): Promise<void> {
  const columns = { kekIds: [...kekIds], reportTime: sql<Date>`now()` };
  await db
    .insertInto("vaultProcesses")
    .values({ processId, ...columns })
    .onConflict((conflict) => conflict.column("processId").doUpdateSet(columns))
    .execute();
  await db.deleteFrom("vaultProcesses").where("reportTime", "<", sql<Date>`now() - interval '1 hour'`).execute();
}

/** Takes a process that ends off the list. */
export async function deleteReport(db: VaultDatabase, processId: string): Promise<void> {
  await db.deleteFrom("vaultProcesses").where("processId", "=", processId).execute();
}

/** What each running process holds. */
export async function listReports(db: VaultDatabase): Promise<readonly { readonly kekIds: readonly string[] }[]> {
  return db
    .selectFrom("vaultProcesses")
    .select("kekIds")
    .where("reportTime", ">", sql<Date>`now() - make_interval(secs => ${silentSeconds})`)
    .execute();
}
