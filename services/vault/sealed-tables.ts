// What all tables with sealed rows have in common: a data key that is wrapped under a key-encryption key (KEK). Counting by
// KEK, and putting another wrapping of the same data key in its place; the secret itself is not touched.
import { type RawBuilder, sql } from "kysely";
import type { VaultDatabase } from "./schema.ts";

/** A table, and the column of the id that its data keys are bound to. */
export interface SealedTable {
  readonly name: string;
  readonly recordId: RawBuilder<string>;
}

/** Every table that has sealed rows. */
export const sealedTables: readonly SealedTable[] = [
  { name: "credentials", recordId: sql`account_id` },
  { name: "oauth_clients", recordId: sql`oauth_app_id` },
  { name: "authorizations", recordId: sql`encode(state_digest, 'hex')` },
  { name: "revocations", recordId: sql`case when credential_generation is null then id else account_id end` },
  { name: "webhook_keys", recordId: sql`webhook_id` },
];

/** A row's data key. */
export interface WrappedRow {
  readonly projectId: string;
  /** What the envelope calls the account: the record's own id. */
  readonly accountId: string;
  readonly dataKeyId: string;
  readonly kekId: string;
  readonly wrappedDataKey: Buffer;
}

/** A row with its data key wrapped anew. */
export interface RewrappedRow {
  readonly row: WrappedRow;
  readonly wrappedDataKey: Buffer;
}

/** How many data keys are wrapped under each KEK, in all tables. Reads whole indexes. */
export async function countDataKeys(db: VaultDatabase): Promise<ReadonlyMap<string, bigint>> {
  const counts = new Map<string, bigint>();
  for (const { name } of sealedTables) {
    const { rows } = await sql<{ kekId: string; count: bigint }>`
      select kek_id, count(*) from ${sql.table(name)} where kek_id is not null group by kek_id`.execute(db);
    for (const { kekId, count } of rows) counts.set(kekId, (counts.get(kekId) ?? 0n) + count);
  }
  return counts;
}

/** The KEKs of a table's rows. Steps from one to the next over the index, so it costs the same for any number of rows. */
export async function listKekIds(db: VaultDatabase, { name }: SealedTable): Promise<readonly string[]> {
  const table = sql.table(name);
  const { rows } = await sql<{ kekId: string }>`
    with recursive found as (
      (select kek_id from ${table} where kek_id is not null order by kek_id limit 1)
      union all
      select (select kek_id from ${table} where kek_id > found.kek_id order by kek_id limit 1)
      from found where found.kek_id is not null
    )
    select kek_id from found where kek_id is not null`.execute(db);
  return rows.map(({ kekId }) => kekId);
}

/** Rows under one KEK in the order of their data keys' ids, those after `afterId`. Locks nothing. */
export async function listWrapped(
  db: VaultDatabase,
  { name, recordId }: SealedTable,
  { kekId, afterId, limit }: { readonly kekId: string; readonly afterId: string; readonly limit: number },
): Promise<readonly WrappedRow[]> {
  const { rows } = await sql<WrappedRow>`
    select project_id, ${recordId} as account_id, data_key_id, kek_id, wrapped_data_key from ${sql.table(name)}
    where kek_id = ${kekId} and data_key_id > ${afterId} order by data_key_id limit ${limit}`.execute(db);
  return rows;
}

/**
 * Puts the new wrappings in, where a row still has the one that the new was made from. Rows that somebody holds are passed
 * over: they are found again. Gives how many were replaced.
 */
export async function replaceWrapped(
  db: VaultDatabase,
  { name }: SealedTable,
  { from, to }: { readonly from: string; readonly to: string },
  rewrapped: readonly RewrappedRow[],
): Promise<number> {
  const column = <Value>(value: (one: RewrappedRow) => Value) => rewrapped.map(value);
  const { numAffectedRows } = await sql`
    with fresh as (
      select * from unnest(
        ${column(({ row }) => row.dataKeyId)}::text[],
        ${column(({ row }) => row.wrappedDataKey)}::bytea[], ${column((one) => one.wrappedDataKey)}::bytea[]
      ) as fresh (data_key_id, old_wrapped, new_wrapped)
    ), held as materialized (
      select data_key_id from ${sql.table(name)}
      where kek_id = ${from} and data_key_id = any(${column(({ row }) => row.dataKeyId)}::text[])
      for update skip locked
    )
    update ${sql.table(name)} stored set wrapped_data_key = fresh.new_wrapped, kek_id = ${to}
    from fresh join held using (data_key_id)
    where stored.kek_id = ${from} and stored.data_key_id = fresh.data_key_id
      and stored.data_key_id = any(${column(({ row }) => row.dataKeyId)}::text[])
      and stored.wrapped_data_key = fresh.old_wrapped`.execute(db);
  return Number(numAffectedRows ?? 0n);
}
