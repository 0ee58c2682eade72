// Starts the run's one Postgres and makes the two migrated databases that each test file's own is copied from. At the end it
// looks through what Postgres has on the disk, write-ahead log included, for secrets of tests: one fails the run.
import { readFileSync } from "node:fs";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { startPostgres } from "../../dev/postgres.ts";
import { leakFinder, secretMarks } from "./leaks.ts";
import { type DatabasePasswords, makeDatabases } from "./own-postgres.ts";

/** The run's Postgres, as the tests see it. */
export interface TestServer {
  readonly url: string;
  readonly password: string;
  readonly roles: DatabasePasswords;
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
    const leaks = await leaksBelow(folder);
    await rm(folder, { recursive: true, force: true });
    if (leaks.length > 0) throw new Error(`secrets in what Postgres wrote:\n${leaks.join("\n")}`);
  };
  try {
    const roles = await makeDatabases({ url, password });
    project.provide("postgres", { url, password, roles });
    return teardown;
  } catch (error) {
    await teardown();
    throw error;
  }
}

async function leaksBelow(folder: string): Promise<readonly string[]> {
  const find = leakFinder(secretMarks);
  const files = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
  return files.flatMap(({ parentPath, name }) =>
    find(readFileSync(join(parentPath, name))).map((leak) => `${name}: ${leak}`),
  );
}
