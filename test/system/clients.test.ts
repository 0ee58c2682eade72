// The generated clients of other languages against the whole stack, run by their own toolchains: what docs/clients.md
// promises a customer is what happens here.
import { execFile } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { StatusCode } from "#libs/errors.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import type { ConnectionFile } from "../../dev/bootstrap.ts";
import { ensureCertificates } from "../../dev/certificates.ts";
import { type Language, languages, missingToolchain, pythonExecutable } from "../../dev/generate-clients.ts";
import { trustDomain } from "../../dev/state.ts";
import { startTestStack } from "../support/stack.ts";

const root = join(import.meta.dirname, "../..");
// Installing the generators and the first build of the Go program take most of it.
const setupMs = 300_000;
const userId = "user of the clients";
const apiKey = "sandbox-key-of-the-clients-test";

const directory = await mkdtemp(join(tmpdir(), "deputy-clients-"));
afterAll(() => rm(directory, { recursive: true, force: true }));
const goFolder = join(root, "clients/go");
const goExecutable = join(directory, "example");

const examples: Readonly<Record<Language, { command: string; args: readonly string[]; cwd: string }>> = {
  python: { command: pythonExecutable, args: ["clients/python/example.py"], cwd: root },
  go: { command: goExecutable, args: [], cwd: goFolder },
};

/** Each language's own name of a status code. */
const codeNames: Readonly<Record<Language, (code: StatusCode) => string>> = {
  python: (code) => code,
  go: (code) => code.toLowerCase().replace(/(?:^|_)([a-z])/g, (_all, letter: string) => letter.toUpperCase()),
};

const stack = await startTestStack();
const { connectionFile } = stack.state;
const accountId = await connectAccount();

describe.each(languages)("the generated %s client", (language) => {
  const missing = missingToolchain(language);

  // In CI a missing toolchain is a fault, and this says which.
  beforeAll(async () => {
    if (missing !== undefined && process.env.CI !== "true") return;
    await promisify(execFile)(process.execPath, ["dev/generate-clients.ts", language], { cwd: root });
    // The first build takes longer than a test may.
    if (language === "go") await promisify(execFile)("go", ["build", "-o", goExecutable, "."], { cwd: goFolder });
  }, setupMs);

  test("gets a token, finds the account, forwards a request and reads a typed refusal", async (context) => {
    if (missing !== undefined) context.skip(missing);
    const { status, output } = await runExample(connectionFile, userId);
    expect(output).toContain(`account ${accountId}: sandbox_header_key of ${userId}\n`);
    expect(output).toContain("forwarded: status 200, attempts 1\n");
    // The sandbox shows a credential by its hash: it reached the upstream and did not come back.
    expect(output).toMatch(/"x-api-key":\s*"sha256:[0-9a-f]{12}"/);
    expect(output).toMatch(refusal("refused", "PERMISSION_DENIED", "HOST_NOT_ALLOWED"));
    expect(output).not.toContain(apiKey);
    expect(status).toBe(0);
  });

  test("says which account is absent, by code, reason and request id", async (context) => {
    if (missing !== undefined) context.skip(missing);
    const { status, output } = await runExample(connectionFile, userId, "apn_absent");
    expect(output).toMatch(refusal("failed", "NOT_FOUND", "ACCOUNT_NOT_FOUND"));
    expect(status).toBe(1);
  });

  test("does not find the account of another user", async (context) => {
    if (missing !== undefined) context.skip(missing);
    const { status, output } = await runExample(connectionFile, "somebody else", accountId);
    expect(output).not.toContain(`account ${accountId}`);
    expect(output).toMatch(refusal("failed", "NOT_FOUND", "ACCOUNT_NOT_FOUND"));
    expect(status).toBe(1);
  });

  test("is refused with a wrong client secret", async (context) => {
    if (missing !== undefined) context.skip(missing);
    const { status, output } = await runExample(changedConnection({ client_secret: "wrong" }));
    expect(output).toMatch(refusal("failed", "UNAUTHENTICATED", "CLIENT_INVALID"));
    expect(status).toBe(1);
  });

  test("does not talk to a server of another authority", async (context) => {
    if (missing !== undefined) context.skip(missing);
    const folder = join(directory, "foreign");
    const { caFile } = await ensureCertificates({ directory: folder, trustDomain, services: [] });
    const { status, output } = await runExample(changedConnection({ ca_file: caFile }));
    expect(output).toMatch(/^failed: (?:UNAVAILABLE|Unavailable) .*(?:certificate|CERTIFICATE)/m);
    expect(status).toBe(1);
  });

  function refusal(label: string, code: StatusCode, reason: string): RegExp {
    return new RegExp(`^${label}: ${codeNames[language](code)} ${reason}: .+ \\(request id [\\w.:-]{8,}\\)$`, "m");
  }

  async function runExample(...args: readonly string[]): Promise<{ status: number; output: string }> {
    const { command, args: before, cwd } = examples[language];
    const run = promisify(execFile)(command, [...before, ...args], { cwd, timeout: 25_000 });
    const ended = await run.catch((error: { code: number; stdout: string; stderr: string }) => error);
    return { status: "code" in ended ? ended.code : 0, output: ended.stdout + ended.stderr };
  }
});

/** A copy of the connection file with some fields changed. */
function changedConnection(change: Partial<ConnectionFile>): string {
  const file = join(directory, "changed.json");
  const connection = JSON.parse(readFileSync(connectionFile, "utf8"));
  writeFileSync(file, JSON.stringify({ ...connection, ...change }), { mode: 0o600 });
  return file;
}

async function connectAccount(): Promise<string> {
  const { account } = await stack.account.createAccount(
    {
      projectId: stack.connection.project_id,
      environment: Environment.DEVELOPMENT,
      externalUserId: userId,
      appSlug: "sandbox_header_key",
      credential: { $case: "fields", value: { values: { api_key: apiKey } } },
    },
    stack.call(),
  );
  return account?.id ?? "";
}
