// What a claim costs: Postgres' own account of the pages that the statement reads.
import { sql } from "kysely";
import { afterAll, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { claimStatement } from "../../services/vault/refresh-claims.ts";
import { openVaultDatabase } from "../../services/vault/schema.ts";
import { createTestDatabase } from "../support/postgres.ts";

const database = await createTestDatabase("vault");
const access = { applicationName: "test", statementTimeoutMs: 20_000 };
const db = openVaultDatabase({ ...database.runtime, ...access, maxConnections: 1 });
afterAll(() => db.destroy());

test("finds what is due by the partial index, and reads nothing of the thousands of rows that are not", async () => {
  const admin = await openConnection({ ...database.superuser, ...access });
  await admin.query(`
    insert into credentials (project_id, account_id, environment, external_user_id, app_slug, oauth_app_id, state, generation,
      blob, data_key_id, wrapped_data_key, kek_id, next_refresh_time)
    select 'proj_1', 'apn_' || n, 'development', 'user_1', 'acme', 'oa_1', 'ACTIVE', 1, 'x', 'dk_' || n, 'x', 'kek_1',
      now() + case when n <= 3 then interval '-1 minute' else interval '1 hour' end
    from generate_series(1, 20000) as n;
    analyze credentials`);
  await admin.end();
  const first = await claimWithPlan(10);
  expect(first.text).toContain('"Index Name": "credentials_due"');
  expect(first.text).not.toContain("Seq Scan");
  expect(first.claimed).toBe(3);
  expect(first.pages).toBeLessThan(150);
  const nothingLeft = await claimWithPlan(10);
  expect(nothingLeft.claimed).toBe(0);
  // The way down the index, and the entries of the three.
  expect(nothingLeft.pages).toBeLessThan(20);
});

/** Claims, and gives the plan by which that was done. */
async function claimWithPlan(room: number) {
  const statement = claimStatement([{ appSlug: "acme", room }], 64);
  const { rows } = await sql<Readonly<Record<string, readonly [{ readonly Plan: Plan }]>>>`
    explain (analyze, buffers, format json) ${statement}`.execute(db);
  const [plan] = Object.values(rows[0] ?? {}).map(([{ Plan }]) => Plan);
  if (plan === undefined) throw new Error("Postgres gave no plan");
  return {
    text: JSON.stringify(plan, undefined, 1),
    claimed: plan["Actual Rows"],
    pages: plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
  };
}

interface Plan {
  readonly "Actual Rows": number;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
}
