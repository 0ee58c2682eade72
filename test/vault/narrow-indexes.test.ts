// What a new vault reads of a row that is named: while its tables have never been analyzed, as in the first minutes of a large import.
import { expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { createTestDatabase } from "../support/postgres.ts";

const database = await createTestDatabase("vault");

test.each([
  ["credentials", "account_id"],
  ["revocations", "id"],
])("finds a row of %s by its primary key, not by an index that begins alike", async (table, column) => {
  const connection = await openConnection({
    ...database.superuser,
    applicationName: "test",
    statementTimeoutMs: 20_000,
  });
  const plan = await connection.query(
    `explain (generic_plan, format json) select * from ${table} where project_id = $1 and ${column} = $2`,
  );
  await connection.end();
  expect(JSON.stringify(plan)).toContain(`"Index Name":"${table}_pkey"`);
});
