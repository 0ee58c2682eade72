// Starts the run's one Postgres and makes the two migrated databases that each test file's own is copied from.
import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { startPostgres } from "../../dev/postgres.ts";
import { atDatabase, type DatabaseName, provisionDatabases, type RolePasswords } from "../../migrations/databases.ts";
import { migrate } from "../../migrations/migrate.ts";

/** The run's Postgres, as the tests see it. */
export interface TestServer {
  readonly url: string;
  readonly password: string;
  readonly roles: Readonly<Record<DatabaseName, RolePasswords>>;
}

declare module "vitest" {
  interface ProvidedContext {
    postgres: TestServer;
  }
}

/** Called by vitest once per run; what it returns is called at the end. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const folder = await mkdtemp(join(tmpdir(), "deputy-test-"));
  const { url, password, stop } = await startPostgres({ dataDirectory: folder, durable: false });
  const teardown = async () => {
    await stop();
    await rm(folder, { recursive: true, force: true });
  };
  try {
    const roles = { account: randomPasswords(), vault: randomPasswords() };
    await provisionDatabases({ url, password, roles });
    for (const database of ["account", "vault"] as const) {
      const owner = new URL(atDatabase(url, `deputy_${database}`));
      owner.username = `deputy_${database}_owner`;
      await migrate({ database, url: owner.href, password: roles[database].owner });
    }
    project.provide("postgres", { url, password, roles });
    return teardown;
  } catch (error) {
    await teardown();
    throw error;
  }
}

function randomPasswords(): RolePasswords {
  return { owner: randomBytes(18).toString("base64url"), runtime: randomBytes(18).toString("base64url") };
}
