// Two vaults and two proxies over one database meet a token that has ended, all at once. The provider rotates refresh
// tokens strictly: a second use of one would kill the grant.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { freePorts } from "../../dev/ports.ts";
import { sandboxRequest } from "../../dev/sandbox-request.ts";
import { trustDomain } from "../../dev/state.ts";
import { connectSandbox, letTokensEnd, openStackDatabase, startAnother, startTestStack } from "../support/stack.ts";

const stack = await startTestStack();
const { connection, account, ca, call } = stack;
const second = await startSecondPair();
const project = { projectId: connection.project_id, environment: Environment.DEVELOPMENT };
const proxies = [stack.proxy, second.proxy];

test("asks the provider once for each account when 200 callers of two vaults need new tokens", async () => {
  const users: User[] = [];
  for (const name of ["race-1", "race-2", "race-3", "race-4", "race-5"]) users.push(await connect(name));
  await warmUp();
  await letTokensEnd(stack);

  const before = await refreshes();
  // Whoever wants to write waits here, so that the two vaults set out within one answer of the provider.
  const holder = await openStackDatabase(stack, "deputy_vault");
  await holder.query("begin; select from credentials for update");
  const callers = Array.from({ length: 40 }, (_, index) => users.map((user) => forward(user, proxies[index % 2])));
  const forwarded = Promise.all(callers.flat());
  await sleep(1_000);
  await holder.end();
  const answers = await forwarded;

  expect(answers.map(({ status }) => status)).toEqual(Array(200).fill(200));
  const credentials = answers.map(({ body }) => JSON.parse(body.toString()).headers.authorization);
  expect(new Set(credentials).size).toBe(users.length);
  expect(await refreshes()).toEqual({ success: before.success + users.length });
  expect((await ofSandbox("/stats")).familiesRevokedByReuse).toBe(0);
  for (const vault of [stack.children.vault, second.vault]) {
    const leases = readFileSync(vault.logFile, "utf8").match(/"method":"LeaseInjection"/g);
    // Each proxy asks once for each account, whoever wants it.
    expect(leases?.length, "both vaults took part").toBeGreaterThanOrEqual(users.length);
  }
});

test("sends nothing while another process holds the account's lock", async () => {
  const user = await connect("locked");
  await letTokensEnd(stack);
  const holder = await openStackDatabase(stack, "deputy_vault");
  await holder.query("select pg_advisory_lock(hashtextextended($1, 0))", [
    `cred:${project.projectId}:${user.accountId}`,
  ]);

  const before = await refreshes();
  const answers = Promise.all(proxies.map((proxy) => forward(user, proxy)));
  await sleep(1_000);
  expect(await refreshes()).toEqual(before);
  await holder.end();
  expect((await answers).map(({ status }) => status)).toEqual([200, 200]);
  expect(await refreshes()).toEqual({ success: before.success + 1 });
});

function ofSandbox(path: string, body?: object): Promise<Record<string, unknown>> {
  return sandboxRequest(new URL(path, connection.sandbox.api_url), ca, body);
}

/** How many refreshes the provider was asked for, by outcome. */
async function refreshes(): Promise<{ success: number }> {
  const { tokenRequests } = (await ofSandbox("/stats")) as { tokenRequests: { refresh_token?: { success: number } } };
  return { success: 0, ...tokenRequests.refresh_token };
}

interface User {
  readonly externalUserId: string;
  readonly accountId: string;
}

async function connect(externalUserId: string): Promise<User> {
  return { externalUserId, accountId: await connectSandbox(stack, externalUserId) };
}

function forward(user: User, proxy: Pick<typeof stack.proxy, "forward"> = stack.proxy) {
  return proxy.forward({ ...project, ...user, method: "GET", url: "/echo/x" }, call());
}

/** Lets both vaults and proxies make their connections, with an account that has nothing to refresh. */
async function warmUp(): Promise<void> {
  const externalUserId = "warm";
  const credential = { $case: "fields", value: { values: { api_key: "sandbox-key-of-the-refresh-test" } } } as const;
  const asked = { ...project, externalUserId, appSlug: "sandbox_header_key", credential };
  const { account: made } = await account.createAccount(asked, call());
  const user = { externalUserId, accountId: made?.id ?? "" };
  for (const proxy of proxies) expect((await forward(user, proxy)).status).toBe(200);
}

/** One more vault on the same database, and a proxy that asks it alone. */
async function startSecondPair() {
  const ports = await freePorts();
  const vaultAddress = `127.0.0.1:${ports.vault}`;
  const proxyAddress = `127.0.0.1:${ports.proxyPublic}`;
  const settings = {
    vault: { DEPUTY_VAULT_INTERNAL_ADDRESS: vaultAddress },
    proxy: {
      DEPUTY_VAULT_ADDRESS: vaultAddress,
      DEPUTY_PROXY_INTERNAL_ADDRESS: `127.0.0.1:${ports.proxy}`,
      DEPUTY_PROXY_PUBLIC_ADDRESS: proxyAddress,
    },
  };
  const [vault] = await Promise.all([
    startAnother(stack, "vault", { name: "vault-2", settings: settings.vault }),
    startAnother(stack, "proxy", { name: "proxy-2", settings: settings.proxy }),
  ]);
  const proxy = createClient(ProxyServiceDefinition, {
    address: proxyAddress,
    tls: { ca, trustDomain },
    service: "proxy",
  });
  afterAll(() => proxy.close());
  return { vault, proxy };
}
