// A Postgres of one test's own, with the databases as migrated: one that can be stopped at once, as when its machine goes down.
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startPostgres } from "../../dev/postgres.ts";
import {
  atDatabase,
  type DatabaseName,
  databaseRoles,
  provisionDatabases,
  type RolePasswords,
} from "../../migrations/databases.ts";
import { migrate } from "../../migrations/migrate.ts";
import type { Access, TestDatabase } from "./postgres.ts";

/** Both databases' passwords. */
export type DatabasePasswords = Readonly<Record<DatabaseName, RolePasswords>>;

/** Makes and migrates both databases on a server. */
export async function makeDatabases({ url, password }: Access): Promise<DatabasePasswords> {
  const roles = { account: randomPasswords(), vault: randomPasswords() };
  await provisionDatabases({ url, password, roles });
  for (const kind of ["account", "vault"] as const) {
    const { database, owner } = databaseRoles(kind);
    await migrate({ database: kind, ...accessOf(url, database, owner, roles[kind].owner) });
  }
  return roles;
}

/** A server that a test stops and starts. */
export interface OwnPostgres {
  /** The vault's database on it. */
  readonly database: TestDatabase;
  /** Stops it without writing anything out; its connections break. */
  stopAtOnce(): Promise<void>;
  start(): Promise<void>;
  /** Stops it for good. */
  remove(): Promise<void>;
}

/** Starts one that keeps what it has committed. */
export async function startOwnPostgres(): Promise<OwnPostgres> {
  const folder = await mkdtemp(join(tmpdir(), "deputy-postgres-"));
  let running = await startPostgres({ dataDirectory: folder, durable: true });
  const { url, password } = running;
  const roles = await makeDatabases(running);
  const { database, owner, runtime } = databaseRoles("vault");
  return {
    database: {
      name: database,
      owner: accessOf(url, database, owner, roles.vault.owner),
      runtime: accessOf(url, database, runtime, roles.vault.runtime),
      superuser: accessOf(url, database, "postgres", password),
    },
    async stopAtOnce() {
      // What pg_ctl's "immediate" sends to the process whose number stands in the first line.
      process.kill(Number.parseInt(readFileSync(join(folder, "data", "postmaster.pid"), "utf8"), 10), "SIGQUIT");
      await running.exited;
    },
    async start() {
      running = await startPostgres({ dataDirectory: folder, durable: true });
    },
    async remove() {
      await running.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function accessOf(server: string, database: string, user: string, password: string): Access {
  const url = new URL(atDatabase(server, database));
  url.username = user;
  return { url: url.href, password };
}

function randomPasswords(): RolePasswords {
  return { owner: randomBytes(18).toString("base64url"), runtime: randomBytes(18).toString("base64url") };
}
