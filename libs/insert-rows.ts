// Many rows in one statement whose text is the same for any number of them, so that Postgres prepares it once: the rows are one
// parameter, as JSON. Listed as values, each number of rows would be another statement, with a parameter for every cell.
import { type Kysely, type RawBuilder, type Selectable, sql } from "kysely";

/** Cells by column, as they are read: what goes into a JSON column is given as it is, not as text. */
type Cells<Row> = Readonly<Partial<Selectable<Row>>>;

/** Inserts rows that all have the same columns; `computed` are the columns that Postgres computes, the same for each row. */
export async function insertRows<Tables, Table extends keyof Tables & string>(
  db: Kysely<Tables>,
  table: Table,
  rows: readonly Cells<Tables[Table]>[],
  computed: { readonly [Column in keyof Tables[Table]]?: RawBuilder<unknown> } = {},
): Promise<void> {
  const [first] = rows;
  if (first === undefined) return;
  const names = Object.keys(first).map((column) => [column, columnName(column)] as const);
  const given = names.map(([column]) => sql.ref(column));
  const more = Object.entries(computed) as [string, RawBuilder<unknown>][];
  const columns = [...given, ...more.map(([column]) => sql.ref(column))];
  const values = [...given, ...more.map(([, value]) => value)];
  await sql`
    insert into ${sql.table(table)} (${sql.join(columns)})
    select ${sql.join(values)} from jsonb_populate_recordset(null::${sql.table(table)}, ${JSON.stringify(rows.map(record(names)))})`.execute(
    db,
  );
}

function record(names: readonly (readonly [string, string])[]) {
  return (row: Readonly<Record<string, unknown>>) => {
    const cells: Record<string, unknown> = {};
    for (const [column, name] of names) cells[name] = cell(row[column]);
    return cells;
  };
}

/** As the plugin of the database names columns, which have no two capitals beside one another. */
function columnName(property: string): string {
  return property.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function cell(value: unknown): unknown {
  if (typeof value === "bigint") return String(value);
  // As pg does: Postgres would refuse half a character in JSON.
  if (typeof value === "string") return value.toWellFormed();
  return value instanceof Uint8Array ? `\\x${Buffer.from(value).toString("hex")}` : value;
}
