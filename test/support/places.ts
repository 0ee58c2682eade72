// Every place of a stack where a secret could be left behind: rows, the database's own files with its write-ahead log, logs,
// the vault's spool, and what `ps` shows of command lines and environments. Not the folders that are there to hold secrets,
// and not what the provider keeps, who is another company.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { openConnection } from "#libs/database.ts";
import { atDatabase } from "../../migrations/databases.ts";
import { leakFinder, type SecretsByName } from "./leaks.ts";
import { dumpDatabase } from "./postgres.ts";
import type { TestStack } from "./stack.ts";

/** A place by its name. */
export type Place = readonly [name: string, content: string | Buffer];

/** What leaks, as `place: secret (form)`. */
export function findLeaksIn(places: Iterable<Place>, secrets: SecretsByName): readonly string[] {
  const find = leakFinder(secrets);
  return [...places].flatMap(([name, content]) => find(content).map((leak) => `${name}: ${leak}`));
}

/** All places of a stack as they are now. */
export async function placesOf({ state, postgres }: TestStack): Promise<readonly Place[]> {
  const access = (database: string) => ({ url: atDatabase(postgres.url, database), password: postgres.password });
  // What is in memory only reaches the files.
  const admin = await openConnection({ ...access("postgres"), applicationName: "test", statementTimeoutMs: 30_000 });
  await admin.query("checkpoint");
  await admin.query("select pg_switch_wal()");
  await admin.end();
  const folders = [join(state.postgres, "data"), state.logs, state.spool];
  const files = [join(state.postgres, "postgres.log"), ...(await Promise.all(folders.map(filesBelow))).flat()];
  return [
    ["rows of account", await dumpDatabase(access("deputy_account"))],
    ["rows of vault", await dumpDatabase(access("deputy_vault"))],
    ...files.map((file): Place => [file.slice(state.directory.length + 1), readFileSync(file)]),
    ...processesOf(state.directory),
  ];
}

/** Files below a folder. What is deleted meanwhile is of no interest. */
export async function filesBelow(folder: string): Promise<readonly string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

/** Command lines and environments of the processes that name the stack's directory in either. */
function processesOf(directory: string): readonly Place[] {
  const lines = execFileSync("ps", ["axeww", "-o", "pid=,args="], { encoding: "utf8", maxBuffer: 1e8 }).split("\n");
  return lines
    .filter((line) => line.includes(directory))
    .map((line): Place => [`process ${line.trim().split(" ")[0]}`, line]);
}
