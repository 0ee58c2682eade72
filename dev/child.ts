// One child process of the local stack: its own session, so that Ctrl-C reaches only the parent, which stops its children
// in order; its output in a log file; its life tied to the parent's (follow-parent.ts).
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");

/**
 * What Node is told of every service; the image says the same. No prototype tricks, no debugger by signal. Forbidding code from
 * strings as well is not to be had: the health service's protobufjs and fastify's router compile functions at start. Room for new
 * objects, also where a container's memory would give little: what belongs to many requests in flight is not copied again and again.
 * And the proxy empties it by itself when bodies pass (services/proxy/body-memory.ts).
 */
export const serviceFlags = ["--disable-proto=delete", "--disable-sigusr1", "--max-semi-space-size=32", "--expose-gc"];

// A service drains for as long as its longest request; in development nobody wants to wait for that.
const stopMs = 5_000;

/** A running child. */
export interface Child {
  readonly name: string;
  readonly process: ChildProcess;
  readonly logFile: string;
  /** Asks it to stop, and insists after some seconds. */
  stop(): Promise<void>;
}

/** What a child is started with. */
export interface ChildOptions {
  readonly name: string;
  /** Path below the repository. */
  readonly file: string;
  readonly settings: Readonly<Record<string, string>>;
  readonly logDirectory: string;
  /** Where Node keeps compiled code, which halves the time of the next start. */
  readonly cacheDirectory: string;
}

/** Starts a file of ours in a process of its own. */
export function startChild({ name, file, settings, logDirectory, cacheDirectory }: ChildOptions): Child {
  const logFile = join(logDirectory, `${name}.log`);
  const log = openSync(logFile, "a", 0o600);
  const preload = join(root, "dev/follow-parent.ts");
  const child = spawn(process.execPath, [...serviceFlags, "--import", preload, file], {
    cwd: root,
    detached: true,
    env: {
      PATH: process.env.PATH ?? "",
      HOME: process.env.HOME ?? "",
      // A test run has one for all of its processes.
      NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? cacheDirectory,
      ...settings,
    },
    stdio: ["pipe", log, log],
  });
  closeSync(log);
  const stop = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), stopMs);
    await once(child, "exit");
    clearTimeout(timer);
  };
  return { name, process: child, logFile, stop };
}

/** Rejects with the end of its log when the child ends. */
export async function failure({ name, process: child, logFile }: Child): Promise<never> {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  // Without the frames of a stack, which would push the error's own line out of sight.
  const lines = readFileSync(logFile, "utf8")
    .split("\n")
    .filter((line) => line !== "" && !/^ +at /.test(line));
  throw new Error(
    `${name} has stopped (${child.exitCode ?? child.signalCode}). The end of ${logFile}:\n${lines.slice(-5).join("\n")}`,
  );
}
