// Many rows in one statement, against a true Postgres: every kind of cell arrives as it was, however many rows there are.
import { type Generated, sql } from "kysely";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { openDatabase } from "#libs/database.ts";
import { insertRows } from "#libs/insert-rows.ts";
import { createTestDatabase } from "../support/postgres.ts";

interface Tables {
  manyCells: {
    id: bigint;
    someText: string | null;
    someBytes: Buffer | null;
    someTime: Date;
    someList: readonly string[];
    someJson: unknown;
    byDefault: Generated<string>;
    computedTime: Date | null;
  };
}

const database = await createTestDatabase("account");
const db = openDatabase<Tables>({
  ...{ ...database.owner, applicationName: "insert-rows-test", statementTimeoutMs: 5_000, maxConnections: 1 },
});
beforeAll(async () => {
  await sql`create table many_cells (id int8 primary key, some_text text, some_bytes bytea, some_time timestamptz not null,
    some_list text[] not null, some_json jsonb, by_default text not null default 'given', computed_time timestamptz)`.execute(
    db,
  );
});
beforeEach(() => db.deleteFrom("manyCells").execute());
afterAll(() => db.destroy());

const time = new Date("2026-01-02T03:04:05.678Z");
const row = (id: bigint) => ({
  id,
  someText: `'); drop table many_cells; -- \\ "ü ☃ ${id}`,
  someBytes: Buffer.from([0, 1, 254, 255]),
  someTime: time,
  someList: ["a,b", '"{}"', ""],
  someJson: { keepsCase: ["x", null, { ofWhat: 1 }] },
});

test("cells arrive as they were; what is not given takes its default", async () => {
  const large = 9_007_199_254_740_993n;
  await insertRows(db, "manyCells", [row(large), { ...row(2n), someText: null, someBytes: null, someJson: null }]);
  const rows = await db.selectFrom("manyCells").selectAll().orderBy("id").execute();
  const rest = { byDefault: "given", computedTime: null };
  expect(rows).toEqual([
    { ...row(2n), someText: null, someBytes: null, someJson: null, ...rest },
    { ...row(large), ...rest },
  ]);
});

test("a computed column may look at the others of its row", async () => {
  const computedTime = sql`case when id = 1 then some_time + interval '1 hour' end`;
  await insertRows(db, "manyCells", [row(1n), row(2n)], { computedTime });
  const rows = await db.selectFrom("manyCells").select("computedTime").orderBy("id").execute();
  expect(rows).toEqual([{ computedTime: new Date(time.getTime() + 3_600_000) }, { computedTime: null }]);
});

test("any number of rows is the same statement, and none is no statement", async () => {
  const statements = () =>
    sql<{ statement: string }>`select statement from pg_prepared_statements where statement like '%recordset%'`.execute(
      db,
    );
  await insertRows(db, "manyCells", []);
  const before = (await statements()).rows.length;
  for (const count of [1, 7, 300]) {
    await db.deleteFrom("manyCells").execute();
    await insertRows(
      db,
      "manyCells",
      Array.from({ length: count }, (_, index) => row(BigInt(index))),
    );
    expect(await db.selectFrom("manyCells").select("id").execute()).toHaveLength(count);
  }
  expect((await statements()).rows.length - before).toBeLessThanOrEqual(1);
});

test("half a character is kept as pg keeps it, and a character of code zero is told as such", async () => {
  await insertRows(db, "manyCells", [{ ...row(1n), someText: "a\ud800b" }]);
  expect(await db.selectFrom("manyCells").select("someText").execute()).toEqual([{ someText: "a\ufffdb" }]);
  const zero = insertRows(db, "manyCells", [{ ...row(2n), someText: "a\u0000b" }]);
  await expect(zero).rejects.toMatchObject({ code: "INVALID_ARGUMENT", reason: "INVALID_FIELD" });
});
