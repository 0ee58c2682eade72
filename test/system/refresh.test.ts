// Two vaults and two proxies over one database meet a token that has ended, all at once. The provider rotates refresh
// tokens strictly: a second use of one would kill the grant.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { type Child, startChild } from "../../dev/child.ts";
import { freePorts } from "../../dev/ports.ts";
import { sandboxRequest } from "../../dev/sandbox-request.ts";
import { trustDomain } from "../../dev/state.ts";
import { connectSandbox, startTestStack } from "../support/stack.ts";

const lifetimeSeconds = 2;
const stack = await startTestStack({ accessTokenSeconds: lifetimeSeconds });
const { connection, ca, call } = stack;
const second = await startSecondPair();

test("asks the provider once when 200 callers of two vaults need a new token", async () => {
  const ofSandbox = (path: string, body?: object) =>
    sandboxRequest(new URL(path, connection.sandbox.api_url), ca, body);
  const accountId = await connectSandbox(stack, "race");
  await ofSandbox("/admin/access-token-seconds", { seconds: 3600 });
  await sleep(lifetimeSeconds * 1000 + 100);

  const request = {
    projectId: connection.project_id,
    environment: Environment.DEVELOPMENT,
    externalUserId: "race",
    accountId,
    method: "GET",
    url: "/echo/x",
  };
  const clients = [stack.proxy, second.proxy];
  const answers = await Promise.all(
    Array.from({ length: 200 }, (_, index) => clients[index % clients.length]?.forward(request, call())),
  );

  expect(answers.map((answer) => answer?.status)).toEqual(Array(200).fill(200));
  const credentials = answers.map((answer) => JSON.parse(answer?.body.toString() ?? "").headers.authorization);
  expect(new Set(credentials).size).toBe(1);
  const stats = await ofSandbox("/stats");
  expect(stats.tokenRequests).toMatchObject({ refresh_token: { success: 1 } });
  expect(stats.familiesRevokedByReuse).toBe(0);
  for (const vault of [stack.children.vault, second.vault]) {
    expect(readFileSync(vault.logFile, "utf8"), "both vaults took part").toContain("LeaseInjection");
  }
});

/** One more vault on the same database, and a proxy that asks it alone. */
async function startSecondPair() {
  const { settings, state } = stack;
  const ports = await freePorts();
  const start = (name: string, file: string, values: Readonly<Record<string, string>>) =>
    startChild({ name, file, settings: values, logDirectory: state.logs, cacheDirectory: state.compileCache });
  const vaultAddress = `127.0.0.1:${ports.vault}`;
  const vault = start("vault-2", "services/vault/main.ts", {
    ...settings.vault,
    DEPUTY_VAULT_INTERNAL_ADDRESS: vaultAddress,
  });
  const proxy = start("proxy-2", "services/proxy/main.ts", {
    ...settings.proxy,
    DEPUTY_VAULT_ADDRESS: vaultAddress,
    DEPUTY_PROXY_INTERNAL_ADDRESS: `127.0.0.1:${ports.proxy}`,
    DEPUTY_PROXY_PUBLIC_ADDRESS: `127.0.0.1:${ports.proxyPublic}`,
  });
  const client = createClient(ProxyServiceDefinition, {
    address: `127.0.0.1:${ports.proxyPublic}`,
    tls: { ca, trustDomain },
    service: "proxy",
  });
  afterAll(async () => {
    client.close();
    await Promise.all([proxy.stop(), vault.stop()]);
  });
  await Promise.all([vault, proxy].map(untilServing));
  return { vault, proxy: client };
}

async function untilServing(child: Child): Promise<void> {
  const deadlineMs = Date.now() + 15_000;
  while (!/"msg":"(serving|listening|started)/.test(readFileSync(child.logFile, "utf8"))) {
    if (child.process.exitCode !== null) throw new Error(readFileSync(child.logFile, "utf8"));
    if (Date.now() > deadlineMs)
      throw new Error(`${child.name} does not serve:\n${readFileSync(child.logFile, "utf8")}`);
    await sleep(50);
  }
}
