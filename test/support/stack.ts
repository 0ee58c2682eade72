// The whole of Deputy as true processes, for one test file: its own state directory, ports that are free, everything gone
// at the end.
import { readFileSync } from "node:fs";
import { chmod, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll } from "vitest";
import { type Connection, openConnection } from "#libs/database.ts";
import type { Client } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { operatorTls } from "../../dev/bootstrap.ts";
import { type Child, startChild } from "../../dev/child.ts";
import { walkConnectPage } from "../../dev/connect-page.ts";
import { freePorts, type Ports } from "../../dev/ports.ts";
import { type Stack, type StackOptions, startStack } from "../../dev/stack.ts";
import { trustDomain } from "../../dev/state.ts";
import { atDatabase } from "../../migrations/databases.ts";

/** A stack with clients for it. */
export interface TestStack extends Stack {
  readonly ports: Ports;
  /** PEM text of the authority that every certificate of the stack comes from. */
  readonly ca: string;
  /** AccountService and ProxyService on their public addresses. */
  readonly account: Client<AccountServiceDefinition>;
  readonly proxy: Client<ProxyServiceDefinition>;
  /** AccountService with the operator's certificate. */
  readonly operator: Client<AccountServiceDefinition>;
  /** What a call of the project's API client is made with. */
  call(): { deadlineMs: number; token: string };
}

/** Starts a stack at the top level of a test file. */
export async function startTestStack(
  options: Pick<StackOptions, "accessTokenSeconds" | "logLevel"> = {},
): Promise<TestStack> {
  const stateDirectory = await mkdtemp(join(tmpdir(), "deputy-stack-"));
  // Postgres runs under another user when started by root, and must get through.
  await chmod(stateDirectory, 0o711);
  const ports = await freePorts();
  const stack = await startStack({ stateDirectory, ports, durable: false, ...options });
  const { connection } = stack;
  const ca = await readFile(connection.ca_file, "utf8");
  const tls = { ca, trustDomain };
  const clients = {
    account: createClient(AccountServiceDefinition, { address: connection.grpc.account, tls, service: "account" }),
    proxy: createClient(ProxyServiceDefinition, { address: connection.grpc.proxy, tls, service: "proxy" }),
    operator: createClient(AccountServiceDefinition, {
      address: `127.0.0.1:${ports.account}`,
      tls: operatorTls(stack.state),
      service: "account",
    }),
  };
  afterAll(async () => {
    for (const client of Object.values(clients)) client.close();
    await stack.stop();
    await rm(stateDirectory, { recursive: true, force: true });
  });
  const clientCredentials = { clientId: connection.client_id, clientSecret: connection.client_secret };
  const { accessToken } = await clients.account.issueAccessToken(
    { grant: { $case: "clientCredentials", value: clientCredentials } },
    { deadlineMs: Date.now() + 10_000 },
  );
  const call = () => ({ deadlineMs: Date.now() + 20_000, token: accessToken });
  return { ...stack, ...clients, ports, ca, call };
}

/**
 * Starts one more process of a service, on ports of its own where `settings` say so, and waits until it serves; it is stopped
 * after the file's last test. `undefined` takes a setting away.
 */
export async function startAnother(
  stack: TestStack,
  service: "account" | "vault" | "proxy",
  { name, settings }: { name: string; settings: Readonly<Record<string, string | undefined>> },
): Promise<Child> {
  const { logs: logDirectory, compileCache: cacheDirectory } = stack.state;
  const given = Object.entries({ ...stack.settings[service], ...settings }).filter(([, value]) => value !== undefined);
  const child = startChild({
    name,
    file: `services/${service}/main.ts`,
    settings: Object.fromEntries(given) as Record<string, string>,
    logDirectory,
    cacheDirectory,
  });
  afterAll(() => child.stop());
  const deadlineMs = Date.now() + 15_000;
  for (let log = ""; !log.includes('"msg":"serving"'); log = readFileSync(child.logFile, "utf8")) {
    if (child.process.exitCode !== null || Date.now() > deadlineMs) throw new Error(`${name} does not serve:\n${log}`);
    await sleep(50);
  }
  return child;
}

/** Opens one of the stack's databases as superuser. */
export function openStackDatabase({ postgres }: Stack, name: "deputy_account" | "deputy_vault"): Promise<Connection> {
  const access = { url: atDatabase(postgres.url, name), password: postgres.password };
  return openConnection({ ...access, applicationName: "test", statementTimeoutMs: 10_000 });
}

/** Ends every access token so far in the vaults' eyes, unseen by their loops: whoever calls next is the first to notice. */
export async function letTokensEnd(stack: Stack): Promise<void> {
  const db = await openStackDatabase(stack, "deputy_vault");
  await db.query("update credentials set expire_time = now() - interval '1 second', next_refresh_time = null");
  await db.end();
}

/** Connects the sandbox account of a user by OAuth, as the gateway and a browser would, and gives the account's id. */
export async function connectSandbox(stack: TestStack, externalUserId: string): Promise<string> {
  const { connection, account, ca, call } = stack;
  const environment = Environment.DEVELOPMENT;
  const { connectLinkUrl } = await account.createConnectToken(
    { projectId: connection.project_id, environment, externalUserId, appSlug: connection.sandbox.app },
    call(),
  );
  const ended = await walkConnectPage({ link: connectLinkUrl, name: externalUserId, ca });
  if (ended.status >= 400) throw new Error(`the callback answered ${ended.status}: ${await ended.text()}`);
  const { accounts } = await account.listAccounts(
    { projectId: connection.project_id, environment, externalUserId },
    call(),
  );
  return accounts.at(-1)?.id ?? "";
}
