// Migrations and roles on a true Postgres: what runs when, what a failure leaves, and what each role may not do.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Logger, runOnce } from "graphile-worker";
import { afterAll, beforeEach, expect, inject, test } from "vitest";
import { type Connection, openConnection, openPool } from "#libs/database.ts";
import { atDatabase, provisionDatabases } from "../../migrations/databases.ts";
import { migrate } from "../../migrations/migrate.ts";
import { type Access, createTestDatabase } from "../support/postgres.ts";

const account = await createTestDatabase("account");
const vault = await createTestDatabase("vault");
const options = { applicationName: "migrate-test", statementTimeoutMs: 5_000 };
const folders: string[] = [];
let next = 0;

afterAll(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true }))));
// Kysely's records of one test would be the missing files of the next.
beforeEach(() => as(account.owner, (owner) => owner.query("drop schema if exists migration cascade")));

async function as<Result>(access: Access, work: (connection: Connection) => Promise<Result>): Promise<Result> {
  const connection = await openConnection({ ...access, ...options });
  try {
    return await work(connection);
  } finally {
    await connection.end();
  }
}

async function folderOf(files: Readonly<Record<string, string>>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "deputy-migrations-"));
  folders.push(folder);
  for (const [name, statement] of Object.entries(files)) await add(folder, name, statement);
  return folder;
}

async function add(folder: string, name: string, statement: string): Promise<void> {
  const run = `await db.executeQuery({ sql: ${JSON.stringify(statement)}, parameters: [], query: { kind: "RawNode" } });`;
  await writeFile(join(folder, name), `export async function up(db: any): Promise<void> { ${run} }\n`);
}

const table = () => `t${next++}`;
const run = (folder: string) => migrate({ database: "account", ...account.owner, folder });

test("runs each migration once, in order, and later only the new ones", async () => {
  const name = table();
  const folder = await folderOf({
    "0002-second.ts": `alter table ${name} add b int`,
    "0001-first.ts": `create table ${name} (a int)`,
  });
  expect(await run(folder)).toEqual(["0001-first", "0002-second"]);
  expect(await run(folder)).toEqual([]);
  await add(folder, "0003-third.ts", `alter table ${name} add c int`);
  expect(await run(folder)).toEqual(["0003-third"]);
});

test("applies each migration once when three processes start at the same time", async () => {
  const folder = await folderOf({ "0001-first.ts": `create table ${table()} (a int)` });
  const applied = await Promise.all([run(folder), run(folder), run(folder)]);
  expect(applied.flat()).toEqual(["0001-first"]);
});

test("installs the vault's job queue once when five processes start at the same time", async () => {
  await as(vault.owner, (owner) => owner.query("drop schema graphile_worker cascade"));
  const starts = [1, 2, 3, 4, 5].map(() => migrate({ database: "vault", ...vault.owner }));
  await Promise.all(starts);
  const [found] = await as(vault.runtime, (runtime) => runtime.query("select count(*) from graphile_worker.jobs"));
  expect(found).toEqual({ count: 0n });
});

test("names the migration that failed and leaves nothing of the run behind", async () => {
  const name = table();
  const folder = await folderOf({
    "0001-first.ts": `create table ${name} (a int)`,
    "0002-wrong.ts": "alter table absent add b int",
  });
  await expect(run(folder)).rejects.toThrow('0002-wrong: relation "absent" does not exist. Nothing was changed.');
  const [found] = await as(account.owner, (owner) => owner.query("select to_regclass($1) as found", [name]));
  expect(found).toEqual({ found: null });
});

test("refuses a migration that slipped in before one that has run", async () => {
  const folder = await folderOf({ "0002-second.ts": `create table ${table()} (a int)` });
  await run(folder);
  await add(folder, "0001-late.ts", `create table ${table()} (a int)`);
  await expect(run(folder)).rejects.toThrow("corrupted migrations");
});

test("refuses a file that is not named like a migration or exports no up", async () => {
  await expect(run(await folderOf({ "first.ts": "select 1" }))).rejects.toThrow("is not named like a migration");
  const folder = await folderOf({});
  await writeFile(join(folder, "0001-empty.ts"), "export const down = 1;\n");
  await expect(run(folder)).rejects.toThrow("does not export a function named up");
});

test("lets the runtime role write rows of a migrated table, and create or change nothing", async () => {
  const name = table();
  await run(await folderOf({ "0001-first.ts": `create table ${name} (id int8 generated always as identity, a int)` }));
  await as(account.runtime, async (runtime) => {
    await runtime.query(`insert into ${name} (a) values (1)`);
    expect(await runtime.query(`update ${name} set a = 2 returning id, a`)).toEqual([{ id: 1n, a: 2 }]);
    const refused = [
      "create table mine (a int)",
      "create schema mine",
      "create temporary table mine (a int)",
      `alter table ${name} add b int`,
      `drop table ${name}`,
      `truncate ${name}`,
      `create index on ${name} (a)`,
      "select * from migration.kysely_migration",
      "set role deputy_account_owner",
    ];
    for (const statement of refused) {
      await expect(runtime.query(statement), statement).rejects.toThrow(/permission denied|must be owner/);
    }
  });
});

test("lets neither role of one database connect to the other database, nor to the server's own", async () => {
  const { url } = inject("postgres");
  for (const [access, database] of [
    [account.runtime, vault.name],
    [account.owner, vault.name],
    [account.runtime, "deputy_vault"],
    [vault.runtime, account.name],
    [vault.owner, "deputy_account"],
    [account.runtime, "postgres"],
    [vault.runtime, "template1"],
  ] as const) {
    const other = new URL(atDatabase(url, database));
    other.username = new URL(access.url).username;
    const connected = as({ url: other.href, password: access.password }, (connection) => connection.query("select 1"));
    await expect(connected, `${other.username} at ${database}`).rejects.toThrow("permission denied for database");
  }
});

test("accepts only a role's own password", async () => {
  const stolen = as({ ...vault.runtime, password: account.runtime.password }, (runtime) => runtime.query("select 1"));
  await expect(stolen).rejects.toThrow("password authentication failed");
});

test("provisions again, from three processes at once, without a change to what is there", async () => {
  const { url, password, roles } = inject("postgres");
  await Promise.all([1, 2, 3].map(() => provisionDatabases({ url, password, roles })));
  expect(await as(vault.runtime, (runtime) => runtime.query("select 1 as one"))).toEqual([{ one: 1 }]);
});

test("refuses a weak password by the role's name, without repeating it", async () => {
  const { url, password, roles } = inject("postgres");
  const weak = { ...roles, account: { ...roles.account, owner: "short word" } };
  await expect(provisionDatabases({ url, password, roles: weak })).rejects.toThrow(
    /^password of deputy_account_owner: must be 16 to 200 printable ASCII characters without spaces$/,
  );
});

test("sends and stores passwords so that they can be checked but not read", async () => {
  // Under this setting a password that is sent as it is would be stored otherwise; a verifier is stored as it came.
  const { url, password, roles } = inject("postgres");
  await provisionDatabases({ url: `${url}&options=-c%20password_encryption%3Dmd5`, password, roles });
  const stored = await as(vault.superuser, (superuser) =>
    superuser.query<{ rolpassword: string }>("select rolpassword from pg_authid where rolname like 'deputy%'"),
  );
  expect(stored).toHaveLength(4);
  for (const { rolpassword } of stored) expect(rolpassword).toMatch(/^SCRAM-SHA-256\$4096:/);
});

test("lets the vault's runtime role add and run jobs, and not touch the queue's tables", async () => {
  await as(vault.runtime, async (runtime) => {
    await runtime.query("select graphile_worker.add_job('greet', '{\"name\":\"Ada\"}', job_key => 'k')");
    for (const statement of [
      "alter table graphile_worker._private_jobs add b int",
      "create table graphile_worker.mine (a int)",
      "delete from graphile_worker.migrations",
    ]) {
      await expect(runtime.query(statement), statement).rejects.toThrow(/permission denied|must be owner/);
    }
  });
  const pool = openPool({ ...vault.runtime, ...options, maxConnections: 2 });
  const greeted: unknown[] = [];
  const taskList = { greet: (payload: unknown) => void greeted.push(payload) };
  await runOnce({ pgPool: pool, noHandleSignals: true, logger: new Logger(() => () => {}), taskList });
  await pool.end();
  expect(greeted).toEqual([{ name: "Ada" }]);
  expect(await as(vault.runtime, (runtime) => runtime.query("select * from graphile_worker.jobs"))).toEqual([]);
});
