// Gives a test file a migrated database of its own: a copy (25 to 50 ms) of the one made at the start of the run.
import { randomBytes } from "node:crypto";
import { afterAll, expect, inject } from "vitest";
import { type Connection, openConnection } from "#libs/database.ts";
import { atDatabase, type DatabaseName, databaseRoles, restrictDatabase } from "../../migrations/databases.ts";
import { findLeaks, secretMarks } from "./leaks.ts";

/** How one role reaches a database. */
export interface Access {
  readonly url: string;
  readonly password: string;
}

/** A database that exists for one test file. */
export interface TestDatabase {
  readonly name: string;
  /** The role of migrations. */
  readonly owner: Access;
  /** The role of the service. */
  readonly runtime: Access;
  readonly superuser: Access;
}

/**
 * Makes a database and drops it, connections and all, after the file's last test; before that, looks through every row of
 * every table for secrets, and fails the file when it finds one. Call it at the top level of a file.
 */
export async function createTestDatabase(kind: DatabaseName): Promise<TestDatabase> {
  const name = `test_${kind}_${randomBytes(6).toString("hex")}`;
  afterAll(async () => {
    const dump = await dumpDatabase(access("postgres", password));
    await withSuperuser((admin) => admin.query(`drop database if exists ${name} with (force)`));
    expect(findLeaks(dump, secretMarks), `secrets in ${name}`).toEqual([]);
  });
  const { database, owner, runtime } = databaseRoles(kind);
  await withSuperuser(async (admin) => {
    await admin.query(`create database ${name} template ${database}`);
    await restrictDatabase(admin, name, kind);
  });
  const { url, password, roles } = inject("postgres");
  const access = (user: string, secret: string): Access => {
    const changed = new URL(atDatabase(url, name));
    changed.username = user;
    return { url: changed.href, password: secret };
  };
  return {
    name,
    owner: access(owner, roles[kind].owner),
    runtime: access(runtime, roles[kind].runtime),
    superuser: access("postgres", password),
  };
}

/** Every row of every table as text; bytes are in hexadecimal. */
export async function dumpDatabase({ url, password }: Access): Promise<string> {
  const db = await openConnection({ url, password, applicationName: "test", statementTimeoutMs: 30_000 });
  try {
    const tables = await db.query<{ name: string }>(
      `select format('%I.%I', schemaname, tablename) as name from pg_tables
       where schemaname not in ('pg_catalog', 'information_schema')`,
    );
    const rows = [];
    for (const { name } of tables)
      rows.push(...(await db.query<{ row: string }>(`select t::text as row from ${name} t`)));
    return rows.map(({ row }) => row).join("\n");
  } finally {
    await db.end();
  }
}

async function withSuperuser<Result>(work: (admin: Connection) => Promise<Result>): Promise<Result> {
  const { url, password } = inject("postgres");
  const admin = await openConnection({ url, password, applicationName: "test", statementTimeoutMs: 30_000 });
  try {
    return await work(admin);
  } finally {
    await admin.end();
  }
}
