// What it costs to find the next batch, by the size of the table. Databases of several sizes stand side by side and are asked in
// turn, so that a machine that is slow for a moment is slow for all of them. Two questions: for a handful of what is due, and
// for apps of which nothing is due, which is what most polls find. The plan is the one that Postgres keeps for a prepared
// statement, as the loop's are.
import { performance } from "node:perf_hooks";
import { sql } from "kysely";
import { openConnection } from "#libs/database.ts";
import { type AppRoom, claimDue, claimStatement } from "../services/vault/refresh-claims.ts";
import { openVaultDatabase, type VaultDatabase } from "../services/vault/schema.ts";
import type { LoopStand } from "./loop-stand.ts";
import { at } from "./quantiles.ts";

const batch = 64;
const rounds = 60;
// Some more than all rounds claim.
const dueRows = 4_200;
/** Of how many apps a batch is made. */
export const claimedApps = 10;

/** One size of the table. */
export interface ClaimCost {
  readonly rows: number;
  readonly fillSeconds: number;
  /** Milliseconds for a batch of due rows, commit and disk sync included: median and quartiles. */
  readonly batchMs: Quartiles;
  /** Milliseconds for a poll that finds nothing. */
  readonly idleMs: Quartiles;
  /** By which index rows were found, and how many pages of 8 kB the statement touched. */
  readonly plan: { readonly batch: PlanFacts; readonly idle: PlanFacts };
}

type Quartiles = readonly [lower: number, median: number, upper: number];

/** What is read of a plan. */
export interface PlanFacts {
  readonly indexes: readonly string[];
  readonly pages: number;
  /** Rows that were read and were not due. */
  readonly passedOver: number;
  readonly readsWholeTable: boolean;
}

/** Of each app as many as the loop would have; beginning with another one each round, as the loop does by chance. */
const rooms = (prefix: string, round = 0): readonly AppRoom[] =>
  Array.from({ length: claimedApps }, (_, index) => ({
    appSlug: `${prefix}_${(index + round) % claimedApps}`,
    room: 10,
  }));

/** Fills a database of each size and measures them in turn. */
export async function measureClaims(stand: LoopStand, sizes: readonly number[]): Promise<readonly ClaimCost[]> {
  const tables = [];
  try {
    for (const rows of sizes) tables.push(await openTable(stand, rows));
    for (let round = 0; round < rounds; round += 1) {
      for (let place = 0; place < tables.length; place += 1) {
        const { db, samples } = tables[(place + round) % tables.length] ?? missing();
        samples.batchMs.push(await timed(db, rooms("busy", round), batch));
        samples.idleMs.push(await timed(db, rooms("quiet", round), 0));
      }
    }
    const costs = [];
    for (const { rows, fillSeconds, samples, database } of tables) {
      const plan = { batch: await planOf(stand, database, "busy"), idle: await planOf(stand, database, "quiet") };
      costs.push({ rows, fillSeconds, batchMs: quartiles(samples.batchMs), idleMs: quartiles(samples.idleMs), plan });
    }
    return costs;
  } finally {
    for (const { db } of tables) await db.destroy();
    await stand.dropDatabases(tables.map(({ database }) => database));
  }
}

async function timed(db: VaultDatabase, wanted: readonly AppRoom[], expected: number): Promise<number> {
  const startMs = performance.now();
  const claims = await claimDue(db, wanted, batch);
  const elapsedMs = performance.now() - startMs;
  if (claims.length !== expected) throw new Error(`claimed ${claims.length} rows, expected ${expected}`);
  return elapsedMs;
}

/** Half the rows belong to apps of which some are due, half to apps of which nothing is; due ones lie anywhere in the table. */
async function openTable(stand: LoopStand, rows: number) {
  const database = await stand.createVaultDatabase(`claims_${rows}`);
  const startMs = performance.now();
  const connection = await openConnection(stand.access(database));
  try {
    await connection.query(
      `insert into credentials (project_id, account_id, environment, external_user_id, app_slug, oauth_app_id, state, generation,
         blob, data_key_id, wrapped_data_key, kek_id, expire_time, next_refresh_time)
       select 'proj_' || n % 100, 'apn_' || n, 'production', 'user_' || n,
         case when n % 2 = 0 then 'busy_' else 'quiet_' end || (n / 2) % $2, 'oa_1', 'ACTIVE', 1,
         sha512(n::text::bytea) || sha512((n + 1)::text::bytea) || sha512((n + 2)::text::bytea), md5(n::text),
         sha512(n::text::bytea), 'kek_1', now() + interval '1 hour',
         case when n % 2 = 0 and (n / 2 * 7919::bigint) % ($1 / 2) < $3 then now() - random() * interval '1 minute'
           else now() + interval '10 minutes' + random() * interval '50 minutes' end
       from generate_series(0, $1::int - 1) as n`,
      [rows, claimedApps, dueRows],
    );
    // As the autovacuum would, in its time.
    await connection.query("vacuum (analyze) credentials");
  } finally {
    await connection.end();
  }
  const db = openVaultDatabase({ ...stand.access(database), maxConnections: 1 });
  await warm(db);
  const samples: { readonly [Name in "batchMs" | "idleMs"]: number[] } = { batchMs: [], idleMs: [] };
  const fillSeconds = (performance.now() - startMs) / 1000;
  stand.say(`${rows} rows in ${fillSeconds.toFixed(1)} s`);
  return { rows, database, db, samples, fillSeconds: Number(fillSeconds.toFixed(1)) };
}

/** A vault's connection lives for hours and has met every page; one's first look at a page of shared memory is a page fault. */
async function warm(db: VaultDatabase): Promise<void> {
  for (const statement of ["set enable_seqscan = off", "set enable_bitmapscan = off"])
    await sql.raw(statement).execute(db);
  await sql`select count(update_time) from credentials
    where state in ('ACTIVE', 'UNKNOWN') and next_refresh_time is not null`.execute(db);
  await sql`reset all`.execute(db);
}

// Postgres plans a prepared statement anew five times, and may then settle on one plan for all parameters.
const settledAfter = 7;

async function planOf(stand: LoopStand, database: string, prefix: string): Promise<PlanFacts> {
  const db = openVaultDatabase({ ...stand.access(database), maxConnections: 1 });
  const connection = await openConnection(stand.access(database));
  try {
    const statement = claimStatement(rooms(prefix), batch).compile(db);
    await connection.query(`prepare claim as ${statement.sql}`);
    const slugs = rooms(prefix).map(({ appSlug }) => appSlug);
    const counts = rooms(prefix).map(({ room }) => room);
    const projects = slugs.map(() => '""');
    // In the order of the statement's parameters.
    const values = `'{${slugs}}', '{${counts}}', '{${projects}}', 30, ${batch}, 60`;
    let plan: PlanNode | undefined;
    for (let run = 0; run < settledAfter; run += 1) {
      await connection.query("begin");
      const [row] = await connection.query<{ "QUERY PLAN": readonly [{ Plan: PlanNode }] }>(
        `explain (analyze, buffers, format json) execute claim(${values})`,
      );
      await connection.query("rollback");
      plan = row?.["QUERY PLAN"][0].Plan;
    }
    if (plan === undefined) throw new Error("Postgres gave no plan");
    return factsOf(plan);
  } finally {
    await connection.end();
    await db.destroy();
  }
}

interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Index Name"?: string;
  readonly "Rows Removed by Filter"?: number;
  readonly "Actual Loops": number;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}

function factsOf(plan: PlanNode): PlanFacts {
  const nodes = nodesOf(plan);
  return {
    indexes: [...new Set(nodes.flatMap((node) => node["Index Name"] ?? []))].sort(),
    pages: plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
    passedOver: nodes.reduce((sum, node) => sum + (node["Rows Removed by Filter"] ?? 0) * node["Actual Loops"], 0),
    readsWholeTable: nodes.some((node) => node["Node Type"] === "Seq Scan"),
  };
}

function nodesOf(node: PlanNode): readonly PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(nodesOf)];
}

function quartiles(values: readonly number[]): Quartiles {
  return [at(values, 0.25), at(values, 0.5), at(values, 0.75)];
}

function missing(): never {
  throw new Error("no size was given");
}
