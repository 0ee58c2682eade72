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

test("serves, says where, and finds everything again at the second start", async () => {
  const first = await start();
  expect(first.output.trimEnd().split("\n").at(-1)).toBe("ready");
  const connectionFile = join(stateDirectory, "connection.json");
  expect(statSync(connectionFile).mode & 0o777).toBe(0o600);
  const before = readConnection(connectionFile);
  const created = await createKeyAccount(before);
  first.child.kill("SIGINT");
  await once(first.child, "exit");
  expect(first.child.exitCode).toBe(0);
  await untilGone();

  const second = await start();
  expect(readConnection(connectionFile)).toEqual(before);
  expect(await listAccounts(before)).toEqual([created]);
  second.child.kill("SIGKILL");
  await untilGone();
  // Two starts of nine processes, each within its own limits, on a machine that runs other tests beside.
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

function readConnection(file: string): ConnectionFile {
  return JSON.parse(readFileSync(file, "utf8"));
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
