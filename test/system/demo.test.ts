// `npm run demo` where something is not as it must be: status 1 and one line that says what. That it succeeds on a sound stack
// is shown by main-job.test.ts.
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test } from "vitest";
import { freePorts } from "../../dev/ports.ts";
import { startTestStack } from "../support/stack.ts";

const root = join(import.meta.dirname, "../..");
const stack = await startTestStack();
const directory = mkdtempSync(join(tmpdir(), "deputy-demo-"));
afterAll(() => rmSync(directory, { recursive: true }));

test("says that nothing was ever started", async () => {
  const { status, stderr } = await runDemo(join(directory, "absent"));
  expect(stderr).toBe(`${join(directory, "absent/connection.json")} does not exist: run npm start first.\n`);
  expect(status).toBe(1);
});

test("says that what was started is not running any more", async () => {
  const { gateway } = await freePorts();
  const connection = { ...stack.connection, gateway_url: `http://127.0.0.1:${gateway}` };
  writeFileSync(join(directory, "connection.json"), JSON.stringify(connection));
  const { status, stderr } = await runDemo(directory);
  expect(stderr).toBe(
    `get an access token: connect ECONNREFUSED 127.0.0.1:${gateway}. Is Deputy running? Start it with npm start.\n`,
  );
  expect(status).toBe(1);
});

test("says that Deputy refused the client", async () => {
  writeFileSync(join(directory, "connection.json"), JSON.stringify({ ...stack.connection, client_secret: "wrong" }));
  const { status, stderr } = await runDemo(directory);
  expect(stderr).toMatch(/^get an access token: POST .* answered 401: .*\n$/);
  expect(status).toBe(1);
});

test("says which step the sandbox broke", async () => {
  const { ports, state, children } = stack;
  const { certificateFile = "", keyFile = "" } = state.certificates.services.sandbox ?? {};
  await children.sandbox.stop();
  const sandbox = createServer(
    { cert: readFileSync(certificateFile), key: readFileSync(keyFile) },
    (request, answer) => {
      answer.writeHead(request.url?.startsWith("/admin/") ? 200 : 500).end("{}");
    },
  );
  await once(sandbox.listen(ports.sandbox, "127.0.0.1"), "listening");
  const { status, stdout, stderr } = await runDemo(state.directory);
  sandbox.closeAllConnections();
  sandbox.close();
  expect(stdout).toContain("create a connect token: for demo-");
  expect(stderr).toMatch(/^connect the sandbox account by OAuth: .*500.*\n$/);
  expect(stdout).not.toContain("The main job works.");
  expect(status).toBe(1);
});

async function runDemo(stateDirectory: string): Promise<{ status: number; stdout: string; stderr: string }> {
  const env = { ...process.env, DEPUTY_STATE_DIRECTORY: stateDirectory };
  const run = promisify(execFile)(process.execPath, ["dev/demo.ts"], { cwd: root, env, timeout: 25_000 });
  const ended = await run.catch((error: { code: number; stdout: string; stderr: string }) => error);
  return { ...ended, status: "code" in ended ? ended.code : 0 };
}
