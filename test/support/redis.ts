// A true Redis of the test's own, on loopback, without anything on disk.
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { freePort } from "../../dev/ports.ts";

/** Why there is none on this machine; undefined when there is one. CI installs it, and there a missing one is a fault. */
export function redisMissing(): string | undefined {
  if (spawnSync("redis-server", ["--version"]).status === 0 || process.env.CI === "true") return undefined;
  return "there is no redis-server on this machine";
}

/** A server at work. */
export interface TestRedis {
  readonly url: string;
  readonly password: string;
  stop(): Promise<void>;
}

/** Starts one and waits until it takes connections. */
export async function startRedis(): Promise<TestRedis> {
  const port = await freePort();
  const password = `canary-redis-${port}-password`;
  const server = spawn("redis-server", ["-"], { stdio: ["pipe", "pipe", "inherit"] });
  server.stdin.end(`bind 127.0.0.1\nport ${port}\nsave ""\nappendonly no\nrequirepass ${password}\n`);
  for await (const line of createInterface({ input: server.stdout })) if (line.includes("Ready to accept")) break;
  return { url: `redis://127.0.0.1:${port}`, password, stop: () => stop(server) };
}

async function stop(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return;
  server.kill("SIGKILL");
  await once(server, "exit");
}
