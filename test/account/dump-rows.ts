// Every row of the account database as text, to look for what must not be there.
import type { Connection } from "#libs/database.ts";

/** Bytes are in hexadecimal. */
export async function dumpRows(owner: Connection): Promise<string> {
  const tables = await owner.query<{ name: string }>(
    "select format('%I', tablename) as name from pg_tables where schemaname = 'public'",
  );
  const rows = [];
  for (const { name } of tables)
    rows.push(...(await owner.query<{ row: string }>(`select t::text as row from ${name} t`)));
  return rows.map(({ row }) => row).join("\n");
}
