// Brings one database to the newest schema: `node migrations/migrate.ts account|vault`, as its owner role. Forward only:
// a file is never changed once released, the next change is the next file. All files of a run stand in one transaction.
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { Logger, runMigrations } from "graphile-worker";
import type { Kysely } from "kysely";
import { type Migration, Migrator } from "kysely/migration";
import { readConfig } from "#libs/config.ts";
import { type Connection, openConnection, openDatabase, openPool } from "#libs/database.ts";
import { reveal } from "#libs/secret.ts";
import { type DatabaseName, databaseRoles } from "./databases.ts";

/** What `migrate` needs. */
export interface MigrateOptions {
  readonly database: DatabaseName;
  /** The database, as its owner role. */
  readonly url: string;
  readonly password: string;
  /** Where the migrations are; the database's own folder beside this file by default. */
  readonly folder?: string;
}

/** Runs what has not run yet and returns its names. Safe from several processes at once: the others wait. */
export async function migrate(options: MigrateOptions): Promise<readonly string[]> {
  const { database, url, password } = options;
  const access = { url, password, applicationName: "deputy-migrate", statementTimeoutMs: 0 };
  const migrations = await loadMigrations(options.folder ?? join(import.meta.dirname, database));
  const connection = await openConnection(access);
  try {
    // Kysely and graphile-worker lock only a part of what they do. Held until this connection ends ("depu").
    await connection.query("select pg_advisory_lock(x'64657075'::int)");
    const applied = await runAll(openDatabase({ ...access, maxConnections: 2 }), migrations);
    await installJobs({ ...access, maxConnections: 1 });
    await grantJobs(connection, databaseRoles(database).runtime);
    return applied;
  } finally {
    await connection.end();
  }
}

async function loadMigrations(folder: string): Promise<Record<string, Migration>> {
  const migrations: Record<string, Migration> = {};
  const files = (await readdir(folder)).filter((file) => !file.startsWith("."));
  for (const file of files.sort()) {
    if (!/^\d{4}-[a-z0-9-]+\.ts$/.test(file)) {
      throw new Error(`${join(folder, file)}: is not named like a migration, 0001-first.ts`);
    }
    const { up } = await import(pathToFileURL(join(folder, file)).href);
    if (typeof up !== "function") throw new Error(`${join(folder, file)}: does not export a function named up`);
    migrations[file.slice(0, -".ts".length)] = { up };
  }
  return migrations;
}

async function runAll(db: Kysely<unknown>, migrations: Record<string, Migration>): Promise<readonly string[]> {
  // A schema of its own keeps Kysely's records out of reach of the runtime role.
  const migrator = new Migrator({
    db,
    provider: { getMigrations: async () => migrations },
    migrationTableSchema: "migration",
  });
  try {
    const { error, results = [] } = await migrator.migrateToLatest();
    if (error === undefined) return results.map(({ migrationName }) => migrationName);
    const failed = results.find(({ status }) => status === "Error")?.migrationName;
    const message = error instanceof Error ? error.message : String(error);
    throw new Error(`${failed ?? "migrations"}: ${message}. Nothing was changed.`, { cause: error });
  } finally {
    await db.destroy();
  }
}

async function installJobs(access: Parameters<typeof openPool>[0]): Promise<void> {
  const pool = openPool(access);
  try {
    await runMigrations({ pgPool: pool, schema: "graphile_worker", logger: new Logger(() => () => {}) });
  } finally {
    await pool.end();
  }
}

// The queue's tables have row security switched on and no policy, which shuts out everybody but their owner: adding and
// running jobs takes the grants and a policy on each of them.
async function grantJobs(connection: Connection, runtime: string): Promise<void> {
  await connection.query(`
    grant usage on schema graphile_worker to ${runtime};
    grant select, insert, update, delete on all tables in schema graphile_worker to ${runtime};
    revoke insert, update, delete on graphile_worker.migrations from ${runtime};
    grant usage, select on all sequences in schema graphile_worker to ${runtime};
    grant execute on all functions in schema graphile_worker to ${runtime};
    do $$
    declare secured regclass;
    begin
      for secured in select oid from pg_class
        where relnamespace = 'graphile_worker'::regnamespace and relrowsecurity
      loop
        execute format('drop policy if exists runtime on %s', secured);
        execute format('create policy runtime on %s to ${runtime} using (true) with check (true)', secured);
      end loop;
    end $$`);
}

if (import.meta.main) {
  const [database] = process.argv.slice(2).filter((argument) => !argument.startsWith("-"));
  if (database !== "account" && database !== "vault" && !process.argv.includes("--help")) {
    console.error("Say which database: node migrations/migrate.ts account|vault");
    process.exit(2);
  }
  const name = database === "vault" ? "vault" : "account";
  const prefix = `DEPUTY_${name.toUpperCase()}_OWNER` as const;
  const config = readConfig({
    [`${prefix}_DATABASE_URL`]: {
      kind: "url",
      help: `The database, as deputy_${name}_owner: postgres://user@host/db.`,
    },
    [`${prefix}_PASSWORD_FILE`]: { kind: "secret", help: `The password of deputy_${name}_owner.` },
  });
  try {
    const applied = await migrate({
      database: name,
      url: String(config[`${prefix}_DATABASE_URL`]),
      password: reveal(config[`${prefix}_PASSWORD_FILE`] ?? ""),
    });
    for (const migration of applied) console.log(`deputy_${name}: applied ${migration}`);
    console.log(`deputy_${name}: the schema is up to date.`);
  } catch (error) {
    console.error(`deputy_${name} could not be migrated: ${(error as Error).message}`);
    process.exitCode = 1;
  }
}
