// The processes as an operator meets them: settings, listeners, health, production mode, logs, the end. What the libraries
// promise is shown here of the true main.ts files.
import { execFile, spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import tls from "node:tls";
import { promisify } from "node:util";
import { afterAll, describe, expect, test } from "vitest";
import type { Admission } from "#libs/callers.ts";
import { type Connection, openConnection } from "#libs/database.ts";
import type { CallOptions, MethodDefinition, ServiceDefinition, TlsIdentity } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { operatorTls } from "../../dev/bootstrap.ts";
import { ensureCertificates } from "../../dev/certificates.ts";
import { freePorts, type Ports } from "../../dev/ports.ts";
import { trustDomain } from "../../dev/state.ts";
import { atDatabase } from "../../migrations/databases.ts";
import { callers as accountCallers } from "../../services/account/callers.ts";
import { vaultCallers } from "../../services/vault/callers.ts";
import { connectSandbox, startAnother, startTestStack } from "../support/stack.ts";

// The part of the standard health protocol that is asked here.
const healthContract = `syntax = "proto3"; package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse { enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; } ServingStatus status = 1; }
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }`;

const root = join(import.meta.dirname, "../..");
const stack = await startTestStack();
const { state, ca, call, connection } = stack;
const directory = mkdtempSync(join(tmpdir(), "deputy-processes-"));
afterAll(() => rmSync(directory, { recursive: true }));
const named = { projectId: connection.project_id, environment: Environment.DEVELOPMENT };

const databaseFaults = ["DEPUTY_DATABASE_URL", "DEPUTY_DATABASE_PASSWORD_FILE"];
const ownFaults: Readonly<Record<string, readonly string[]>> = {
  account: [...databaseFaults, "DEPUTY_TOKEN_KEY_FILE"],
  vault: [...databaseFaults, "DEPUTY_SIGNING_KEY_FILE"],
  proxy: [],
  gateway: [],
};

test.each(Object.entries(ownFaults))("%s names all that is wrong with its settings at once", (name, faults) => {
  const { status, stderr } = run(name, { DEPUTY_DEVELOPMENT: "perhaps" });
  const tlsFaults = ["DEPUTY_TLS_CA_FILE", "DEPUTY_TLS_CERTIFICATE_FILE", "DEPUTY_TLS_KEY_FILE"];
  const lines = stderr.trimEnd().split("\n");
  expect(lines.map((line) => line.split(" ")[0])).toEqual(["DEPUTY_DEVELOPMENT", ...tlsFaults, ...faults]);
  expect(status).toBe(1);
});

test.each(["vault", "proxy"] as const)("%s does not start in production with test targets", (name) => {
  const { status, stdout } = run(name, { ...stack.settings[name], DEPUTY_DEVELOPMENT: "false" });
  expect(stdout).toContain("DEPUTY_EGRESS_TEST_ALLOW is for development");
  expect(status).toBe(1);
});

describe.each(["account", "vault", "proxy", "accountPublic", "proxyPublic"] as const)("the listener %s", (name) => {
  const isPublic = name.endsWith("Public");
  const operator = operatorTls(state);

  test("speaks TLS 1.3 and nothing older", async () => {
    const identity = { ca, cert: operator.certificate, key: operator.key };
    expect(await answerOf(name, identity)).toBe("TLSv1.3");
    expect(await answerOf(name, { ...identity, minVersion: "TLSv1.2", maxVersion: "TLSv1.2" })).toMatch(
      /^refused: .*PROTOCOL_VERSION/,
    );
  });

  test(`${isPublic ? "asks for no" : "takes nobody without a"} certificate of the stack's authority`, async () => {
    const strangers = { directory: join(directory, "foreign"), trustDomain, services: ["operator"] };
    const { services } = await ensureCertificates(strangers);
    const read = (file = "") => readFileSync(file, "utf8");
    const foreign = { cert: read(services.operator?.certificateFile), key: read(services.operator?.keyFile) };
    for (const identity of [{ ca }, { ca, ...foreign }]) {
      expect(await answerOf(name, identity)).toMatch(isPublic ? /^TLSv1.3$/ : /^refused: /);
    }
  });
});

describe.each([
  ["account", AccountServiceDefinition],
  ["vault", CredentialVaultDefinition],
  ["proxy", ProxyServiceDefinition],
] as const)("%s", (service, definition) => {
  test("describes itself by reflection in development", async () => {
    expect(await curl(stack.ports[service], "", "--list-services")).toContain(definition.fullName);
  });

  test("answers its health check in production, and describes nothing", async () => {
    const ports = await freePorts();
    await startAnother(stack, service, { name: `${service}-production`, settings: production(service, ports) });
    writeFileSync(join(directory, "health.proto"), healthContract);
    const check = ["--schema", directory, "-d", "{}", "--timeout", "5s"];
    const answer = await curl(ports[service], "/grpc.health.v1.Health/Check", ...check);
    expect(JSON.parse(answer)).toEqual({ status: "SERVING" });
    await expect(curl(ports[service], "", "--list-services")).rejects.toThrow(/reflection/);
  });
});

// Its catalog has the sandbox alone, all of it marked for development.
test("account offers no development apps in production", async () => {
  const ports = await freePorts();
  await startAnother(stack, "account", { name: "account-apps", settings: production("account", ports) });
  const account = accountAt(ports);
  expect((await stack.account.listApps({}, call())).apps.length).toBeGreaterThan(0);
  expect((await account.listApps({}, call())).apps).toEqual([]);
});

test("a call at work ends well when its process is told to stop", async () => {
  const ports = await freePorts();
  const settings = { ...production("account", ports), DEPUTY_DEVELOPMENT: "true" };
  const child = await startAnother(stack, "account", { name: "account-drain", settings });
  const account = accountAt(ports);
  const blocker = await openConnection({
    url: atDatabase(stack.postgres.url, "deputy_account"),
    password: stack.postgres.password,
    applicationName: "test",
    statementTimeoutMs: 10_000,
  });
  await blocker.query("begin; lock table accounts in access exclusive mode");
  const listing = account.listAccounts(named, call());
  await untilWaiting(blocker);
  child.process.kill("SIGTERM");
  await untilLogged(child.logFile, "draining");
  await sleep(200);
  await blocker.end();
  expect((await listing).accounts).toBeInstanceOf(Array);
  if (child.process.exitCode === null) await once(child.process, "exit");
  expect(child.process.exitCode).toBe(0);
});

test("one request has one id in the logs of all processes, which are JSON line by line", async () => {
  const accountId = await connectSandbox(stack, "request-id");
  const requestId = `test-${randomUUID()}`;
  const target = Buffer.from(`${connection.sandbox.api_url}/echo/x`).toString("base64url");
  const query = `external_user_id=request-id&account_id=${accountId}`;
  const headers = {
    authorization: `Bearer ${call().token}`,
    "x-pd-environment": connection.environment,
    "x-request-id": requestId,
  };
  const url = `${connection.gateway_url}/v1/connect/${connection.project_id}/proxy/${target}?${query}`;
  expect((await fetch(url, { headers })).status).toBe(200);
  for (const name of ["gateway", "proxy", "account", "vault"] as const) {
    const { logFile } = stack.children[name];
    await untilLogged(logFile, requestId);
    const lines = readFileSync(logFile, "utf8").trimEnd().split("\n");
    expect(lines.map((line) => JSON.parse(line).service)).toEqual(lines.map(() => name));
  }
});

describe.each([AccountServiceDefinition, CredentialVaultDefinition] as const)(
  "the contract's rules of $fullName",
  (definition) => {
    const service = definition === AccountServiceDefinition ? "account" : "vault";
    const table: Readonly<Record<string, readonly Admission[]>> = service === "account" ? accountCallers : vaultCallers;
    // What has no field that a rule could be about, and what a client of ours cannot send.
    const left = ["getTokenKeys", "getVaultStatus"];
    const methods = Object.entries(definition.methods as Readonly<Record<string, MethodDefinition>>);

    test.each(methods.filter(([name, { requestStream }]) => !requestStream && !left.includes(name)))(
      "are enforced for %s",
      async (name, { requestType }) => {
        const caller = table[name]?.find((admission) => admission.service !== undefined)?.service ?? "";
        const client = createClient(definition as ServiceDefinition, {
          address: `127.0.0.1:${stack.ports[service]}`,
          tls: tlsOf(caller),
          service,
        });
        const empty = requestType.fromPartial({} as never) as object;
        const endless = Object.entries(empty).map(([field, value]) => [
          field,
          value === "" ? "x".repeat(20_000) : value,
        ]);
        const send = client[name] as unknown as (request: object, along: CallOptions) => unknown;
        const answer = send(Object.fromEntries(endless), call());
        const taken = Symbol.asyncIterator in Object(answer) ? (answer as AsyncGenerator).next() : answer;
        await expect(taken).rejects.toMatchObject({ code: "INVALID_ARGUMENT", violations: expect.anything() });
        client.close();
      },
    );
  },
);

function run(name: string, settings: Readonly<Record<string, string>>) {
  const { PATH, NODE_COMPILE_CACHE } = process.env;
  const env = { PATH, NODE_COMPILE_CACHE, ...settings };
  return spawnSync(process.execPath, [`services/${name}/main.ts`], {
    cwd: root,
    env,
    encoding: "utf8",
    timeout: 20_000,
  });
}

/** What a service is started with beside the stack's own, on ports of its own. */
function production(service: "account" | "vault" | "proxy", ports: Ports) {
  const name = service.toUpperCase();
  return {
    DEPUTY_DEVELOPMENT: "false",
    DEPUTY_EGRESS_TEST_ALLOW: undefined,
    [`DEPUTY_${name}_INTERNAL_ADDRESS`]: `127.0.0.1:${ports[service]}`,
    ...(service !== "vault" && { [`DEPUTY_${name}_PUBLIC_ADDRESS`]: `127.0.0.1:${ports[`${service}Public`]}` }),
  };
}

function accountAt(ports: Ports) {
  const address = `127.0.0.1:${ports.accountPublic}`;
  const client = createClient(AccountServiceDefinition, { address, tls: { ca, trustDomain }, service: "account" });
  afterAll(() => client.close());
  return client;
}

function tlsOf(service: string): TlsIdentity {
  const { certificateFile = "", keyFile = "" } = state.certificates.services[service] ?? {};
  return { ca, certificate: readFileSync(certificateFile, "utf8"), key: readFileSync(keyFile, "utf8"), trustDomain };
}

/** The protocol version once the server has sent something, which it does when it has accepted the certificate. */
function answerOf(name: keyof Ports, options: tls.ConnectionOptions): Promise<string> {
  return new Promise((resolve) => {
    const address = { host: "127.0.0.1", port: stack.ports[name], servername: "localhost", ALPNProtocols: ["h2"] };
    const socket = tls.connect({ ...address, ...options });
    socket.once("data", () => {
      resolve(socket.getProtocol() ?? "");
      socket.destroy();
    });
    socket.on("error", (error: NodeJS.ErrnoException) => resolve(`refused: ${error.code}`));
    socket.on("close", () => resolve("refused: closed"));
  });
}

/** What `buf curl` prints, with the operator's certificate. */
async function curl(port: number, path: string, ...args: readonly string[]): Promise<string> {
  const { certificateFile = "", keyFile = "" } = state.certificates.services.operator ?? {};
  const identity = ["--cacert", connection.ca_file, "--cert", certificateFile, "--key", keyFile];
  const all = ["curl", "--protocol", "grpc", ...identity, ...args, `https://localhost:${port}${path}`];
  return (await promisify(execFile)(join(root, "node_modules/.bin/buf"), all, { timeout: 20_000 })).stdout;
}

async function untilLogged(file: string, text: string): Promise<void> {
  const deadlineMs = Date.now() + 5_000;
  while (!readFileSync(file, "utf8").includes(text)) {
    if (Date.now() > deadlineMs) throw new Error(`${file} does not say ${text}`);
    await sleep(20);
  }
}

/** Waits until a statement of somebody waits for a lock. Not by pg_stat_activity: a transaction sees it as it once was. */
async function untilWaiting(blocker: Connection): Promise<void> {
  const deadlineMs = Date.now() + 5_000;
  while ((await blocker.query("select from pg_locks where not granted")).length === 0) {
    if (Date.now() > deadlineMs) throw new Error("nobody waits for the lock");
    await sleep(20);
  }
}
