// The supervisor of the embedded Postgres, on true processes: how it ends, what it keeps, what it refuses.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { type Postgres, startPostgres } from "../../dev/postgres.ts";

const options = { applicationName: "postgres-test", statementTimeoutMs: 5_000 };
const running: { stop(): Promise<void> }[] = [];
let root = "";
let dataDirectory = "";

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "deputy-postgres-"));
  await chmod(root, 0o755);
  dataDirectory = join(root, "main");
});
afterEach(async () => {
  for (const { stop } of running.splice(0)) await stop();
});
afterAll(() => rm(root, { recursive: true, force: true }));

async function start(folder = dataDirectory): Promise<Postgres> {
  const postgres = await startPostgres({ dataDirectory: folder, durable: true });
  running.push(postgres);
  return postgres;
}

async function query(postgres: Pick<Postgres, "url" | "password">, sql: string): Promise<readonly object[]> {
  const connection = await openConnection({ url: postgres.url, password: postgres.password, ...options });
  try {
    return await connection.query(sql);
  } finally {
    await connection.end();
  }
}

/** A process in a group of its own that starts Postgres, prints where it is, and says "interrupted" at each SIGINT. */
async function startParent(): Promise<{ parent: ChildProcess; postgres: Pick<Postgres, "url" | "password"> }> {
  const script = `
    const { startPostgres } = await import(${JSON.stringify(new URL("../../dev/postgres.ts", import.meta.url).href)});
    process.on("SIGINT", () => console.log("interrupted"));
    const { url, password } = await startPostgres({ dataDirectory: process.argv[1], durable: true });
    console.log(JSON.stringify({ url, password }));`;
  const command = ["--input-type=module", "--eval", script, dataDirectory];
  const parent = spawn(process.execPath, command, { detached: true, stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(parent, "exit");
  running.push({
    stop: async () => {
      parent.kill("SIGKILL");
      await ended;
    },
  });
  return { parent, postgres: JSON.parse(await line(parent)) };
}

async function line(child: ChildProcess): Promise<string> {
  if (!child.stdout) throw new Error("the child has no output");
  const [chunk] = await once(child.stdout, "data");
  return String(chunk).trim();
}

const postmasterPid = async () =>
  Number.parseInt(await readFile(join(dataDirectory, "data", "postmaster.pid"), "utf8"), 10);

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

test("keeps data and password over a restart", async () => {
  const first = await start();
  await query(first, "create table kept as select 42 as answer");
  await first.stop();
  const second = await start();
  expect(second.password).toBe(first.password);
  expect(await query(second, "select answer from kept")).toEqual([{ answer: 42 }]);
});

test("ends with its parent when that is killed by SIGKILL, and keeps what was committed", async () => {
  const { parent, postgres } = await startParent();
  const pid = await postmasterPid();
  await query(postgres, "create table committed as select 1 as one");
  expect(isAlive(pid)).toBe(true);
  parent.kill("SIGKILL");
  await expect.poll(() => isAlive(pid), { timeout: 2_000, interval: 10 }).toBe(false);
  expect(await query(await start(), "select one from committed")).toEqual([{ one: 1 }]);
});

test("can be started again at once after its parent was killed", async () => {
  const { parent } = await startParent();
  parent.kill("SIGKILL");
  expect(await query(await start(), "select 1 as one")).toEqual([{ one: 1 }]);
});

test("is not reached by an interrupt of its parent's process group", async () => {
  const { parent, postgres } = await startParent();
  const interrupted = line(parent);
  process.kill(-(parent.pid ?? 0), "SIGINT");
  expect(await interrupted).toBe("interrupted");
  await sleep(200);
  expect(await query(postgres, "select 1 as one")).toEqual([{ one: 1 }]);
});

test("refuses a data directory on which another Postgres runs, and leaves that one alone", async () => {
  const postgres = await start();
  await expect(start()).rejects.toThrow(/^Another Postgres \(process \d+\) is running on .*: stop it first\.$/);
  expect(await query(postgres, "select 1 as one")).toEqual([{ one: 1 }]);
});

test("starts over a stale postmaster.pid whose number now belongs to another process of the same user", async () => {
  const { uid, gid } = await stat(join(dataDirectory, "data"));
  const bystander = spawn("sleep", ["60"], { ...(process.getuid?.() === 0 ? { uid, gid } : {}), cwd: "/" });
  const data = join(dataDirectory, "data");
  await writeFile(join(data, "postmaster.pid"), `${bystander.pid}\n${data}\n`);
  try {
    expect(await query(await start(), "select 1 as one")).toEqual([{ one: 1 }]);
    expect(bystander.exitCode).toBeNull();
  } finally {
    bystander.kill();
  }
});

test("makes its data anew when the first start was killed half way", async () => {
  const folder = join(root, "half");
  await mkdir(join(folder, "data.new", "base"), { recursive: true });
  await writeFile(join(folder, "superuser-password"), "a-password-from-before");
  await chmod(join(folder, "superuser-password"), 0o644);
  expect(await query(await start(folder), "select 1 as one")).toEqual([{ one: 1 }]);
});

test("says in one sentence why it did not start", async () => {
  const folder = join(root, "half");
  await writeFile(join(folder, "data", "PG_VERSION"), "9.6\n");
  await expect(start(folder)).rejects.toThrow(/^Postgres did not start \(.*FATAL: .*\); its log is .*postgres\.log\.$/);
});

test("refuses a folder that holds something else and leaves it as it is", async () => {
  const folder = join(root, "foreign");
  await mkdir(folder);
  await writeFile(join(folder, "letter.txt"), "dear");
  await expect(start(folder)).rejects.toThrow(
    `The data directory ${folder} is not empty and holds no Postgres of ours`,
  );
  expect(await readdir(folder)).toEqual(["letter.txt"]);
});

test("refuses a folder that its user cannot reach, in one sentence", async () => {
  const locked = join(root, "locked");
  await mkdir(locked, { mode: process.getuid?.() === 0 ? 0o700 : 0o500 });
  await expect(start(join(locked, "postgres"))).rejects.toThrow(
    process.getuid?.() === 0
      ? /^Postgres runs as the user postgres, who cannot reach .*locked\/postgres: move it out of root's folders/
      : /^The data directory .*locked\/postgres cannot be used by this user \(EACCES\): choose another one\.$/,
  );
});

test("puts the socket into a short folder when the data directory's path is too long for one", async () => {
  const postgres = await start(join(root, "a".repeat(60), "b".repeat(60)));
  expect(postgres.socketDirectory.length).toBeLessThan(89);
  expect((await stat(postgres.socketDirectory)).mode & 0o777).toBe(0o700);
  expect(await query(postgres, "select 1 as one")).toEqual([{ one: 1 }]);
  await postgres.stop();
  await rm(postgres.socketDirectory, { recursive: true });
});

test("asks the superuser for the password, listens on no port, and keeps password, log and data to its user", async () => {
  const postgres = await start();
  await expect(query({ ...postgres, password: "wrong" }, "select 1")).rejects.toThrow("password authentication failed");
  expect(await query(postgres, "show listen_addresses")).toEqual([{ listen_addresses: "" }]);
  for (const name of ["superuser-password", "postgres.log", "data"]) {
    expect((await stat(join(dataDirectory, name))).mode & 0o077, name).toBe(0);
  }
});

test("writes no statement and no value of a row to its log", async () => {
  const postgres = await start();
  await query(postgres, "create table tokens (value text primary key)");
  await expect(query(postgres, "insert into tokens values ('sesame'), ('sesame')")).rejects.toThrow("duplicate key");
  const log = await readFile(join(dataDirectory, "postgres.log"), "utf8");
  expect(log).toContain("duplicate key");
  expect(log).not.toContain("sesame");
});

test("says that it has exited when it ends by itself", async () => {
  const postgres = await start();
  process.kill(await postmasterPid(), "SIGQUIT");
  await postgres.exited;
  await expect(query(postgres, "select 1")).rejects.toThrow();
});
