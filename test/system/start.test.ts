// `npm start` as a person runs it: twice, killed, and where it cannot work.
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import type { ConnectionFile } from "../../dev/bootstrap.ts";
import { walkConnectPage } from "../../dev/connect-page.ts";
import { freePorts, listeners, type Ports } from "../../dev/ports.ts";

const root = join(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "deputy-start-"));
// Postgres runs under another user when started by root, and must get through.
chmodSync(folder, 0o711);
const stateDirectory = join(folder, "state");
const ports = await freePorts();
const started: ChildProcess[] = [];

afterAll(async () => {
  for (const child of started) {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill("SIGTERM");
      await once(child, "exit");
    }
  }
  rmSync(folder, { recursive: true, force: true });
});

test("serves within a minute, and prints lines that work as they stand", async () => {
  const startMs = performance.now();
  const { output } = await start();
  expect(performance.now() - startMs).toBeLessThan(60_000);
  expect(output.trimEnd().split("\n").at(-1)).toBe("ready");
  const printed = output.split("\n").flatMap((line) => (line.startsWith("  ") ? line.slice(2) : []));
  const commands = printed.join("\n").split(/(?<!\\)\n/);
  const toLink = commands.findIndex((command) => command.includes("/tokens"));
  const link = JSON.parse(inBash(commands.slice(0, toLink + 1)).at(-1) ?? "").connect_link_url;
  const ca = readFileSync(readConnection().ca_file, "utf8");
  expect((await walkConnectPage({ link, name: "Reader of Lines", ca })).status).toBeLessThan(400);

  const [overRest, overGrpc] = inBash(commands)
    .slice(-2)
    .map((text) => JSON.parse(text));
  const echoes = [overRest, JSON.parse(Buffer.from(overGrpc.body, "base64").toString())];
  for (const { path, headers } of echoes) {
    expect(path).toBe("/api/echo/hello");
    expect(headers.authorization).toMatch(/^Bearer sha256:/);
  }
  // A first start beside other tests.
}, 120_000);

test("keeps its secrets to their owner", () => {
  for (const file of ["connection.json", "env"]) expect(statSync(join(stateDirectory, file)).mode & 0o777).toBe(0o600);
});

test("leaves no process behind when it is killed, finds everything at the second start, and ends on Ctrl-C", async () => {
  const before = readConnection();
  const created = await createKeyAccount(before);
  started.at(-1)?.kill("SIGKILL");
  await untilGone();

  const { child } = await start();
  expect(readConnection()).toEqual(before);
  expect(await listAccounts(before)).toContain(created);
  child.kill("SIGINT");
  await once(child, "exit");
  expect(child.exitCode).toBe(0);
  await untilGone();
}, 120_000);

test("says in one sentence that a port is taken", async () => {
  const server = createServer().listen(ports.gateway, "127.0.0.1");
  await once(server, "listening");
  const { status, stderr } = run(stateDirectory);
  server.close();
  expect(status).toBe(1);
  expect(stderr).toBe(
    `Port ${ports.gateway} is taken: is Deputy running already? Set DEPUTY_GATEWAY_PORT to another port.\n`,
  );
});

test("says in one sentence that it may not write to its state directory", () => {
  const { status, stderr } = run(join(import.meta.filename, "state"));
  expect(status).toBe(1);
  expect(stderr.trimEnd().split("\n")).toHaveLength(1);
  expect(stderr).toContain("DEPUTY_STATE_DIRECTORY");
});

test.skipIf(process.getuid?.() !== 0)("says in one sentence that Postgres cannot reach a folder of root's", () => {
  const hidden = mkdtempSync(join(folder, "hidden-"));
  const { status, stderr } = run(join(hidden, "state"));
  expect(status).toBe(1);
  expect(stderr.trimEnd().split("\n")).toHaveLength(1);
  expect(stderr).toContain(hidden);
});

function environment(directory: string, chosen: Ports): NodeJS.ProcessEnv {
  const variables = Object.entries(listeners).map(([name, { variable }]) => [
    variable,
    String(chosen[name as keyof Ports]),
  ]);
  return { ...process.env, ...Object.fromEntries(variables), DEPUTY_STATE_DIRECTORY: directory };
}

function run(directory: string) {
  return spawnSync(process.execPath, ["dev/start.ts"], {
    cwd: root,
    env: environment(directory, ports),
    encoding: "utf8",
    timeout: 30_000,
  });
}

async function start(): Promise<{ child: ChildProcess; output: string }> {
  const child = spawn(process.execPath, ["dev/start.ts"], {
    cwd: root,
    env: environment(stateDirectory, ports),
    stdio: ["ignore", "pipe", "pipe"],
  });
  started.push(child);
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream?.setEncoding("utf8").on("data", (text) => (output += text));
  while (!output.endsWith("ready\n")) {
    if (child.exitCode !== null) throw new Error(`npm start ended with ${child.exitCode}:\n${output}`);
    await sleep(20);
  }
  return { child, output };
}

/** Every process of the stack carries its state directory in its command line or its environment. */
function processesOfStack(): readonly string[] {
  const lines = execFileSync("ps", ["axeww", "-o", "pid=,args="], { encoding: "utf8" }).split("\n");
  return lines.filter((line) => line.includes(stateDirectory) && !line.includes("ps axeww"));
}

async function untilGone(): Promise<void> {
  const deadlineMs = Date.now() + 20_000;
  while (processesOfStack().length > 0) {
    if (Date.now() > deadlineMs) throw new Error(`still running:\n${processesOfStack().join("\n")}`);
    await sleep(50);
  }
}

/** What each command prints. */
function inBash(commands: readonly string[]): readonly string[] {
  const script = ["set -euo pipefail", ...commands].join("\necho ---\n");
  const output = execFileSync("bash", ["-c", script], { cwd: root, encoding: "utf8", timeout: 60_000 });
  return output.split("---\n").slice(1);
}

function readConnection(): ConnectionFile {
  return JSON.parse(readFileSync(join(stateDirectory, "connection.json"), "utf8"));
}

async function token({ gateway_url, client_id, client_secret }: ConnectionFile): Promise<Record<string, string>> {
  const body = JSON.stringify({ grant_type: "client_credentials", client_id, client_secret });
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`${gateway_url}/v1/oauth/token`, { method: "POST", headers, body });
  const { access_token } = (await answer.json()) as { access_token: string };
  return { ...headers, authorization: `Bearer ${access_token}`, "x-pd-environment": "development" };
}

async function createKeyAccount(connection: ConnectionFile): Promise<string> {
  const headers = await token(connection);
  const url = `${connection.gateway_url}/v1/connect/${connection.project_id}`;
  const tokenBody = JSON.stringify({ external_user_id: "user-1" });
  const made = await fetch(`${url}/tokens`, { method: "POST", headers, body: tokenBody });
  const { token: connect_token } = (await made.json()) as { token: string };
  const cfmap_json = JSON.stringify({ api_key: "sandbox-key-canary-start" });
  const body = JSON.stringify({ app_slug: "sandbox_header_key", cfmap_json, connect_token });
  const answer = await fetch(`${url}/accounts?external_user_id=user-1`, { method: "POST", headers, body });
  expect(answer.status).toBe(200);
  return ((await answer.json()) as { id: string }).id;
}

async function listAccounts(connection: ConnectionFile): Promise<readonly string[]> {
  const headers = await token(connection);
  const answer = await fetch(`${connection.gateway_url}/v1/connect/${connection.project_id}/accounts`, { headers });
  return ((await answer.json()) as { data: { id: string }[] }).data.map(({ id }) => id);
}
