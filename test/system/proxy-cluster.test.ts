// Several proxy processes behind one address: connections go to each, one that dies is replaced, and all stop together.
import { readFileSync } from "node:fs";
import { afterAll, expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { startChild } from "../../dev/child.ts";
import { freePorts } from "../../dev/ports.ts";
import { trustDomain } from "../../dev/state.ts";
import { startTestStack } from "../support/stack.ts";

const stack = await startTestStack();
const ports = await freePorts();
const { logs: logDirectory, compileCache: cacheDirectory } = stack.state;
const child = startChild({
  name: "proxy-cluster",
  file: "services/proxy/cluster.ts",
  settings: {
    ...stack.settings.proxy,
    DEPUTY_PROXY_PROCESSES: "2",
    DEPUTY_PROXY_INTERNAL_ADDRESS: `127.0.0.1:${ports.proxy}`,
    DEPUTY_PROXY_PUBLIC_ADDRESS: `127.0.0.1:${ports.proxyPublic}`,
  },
  logDirectory,
  cacheDirectory,
});
afterAll(() => child.stop());

const lines = (): readonly { readonly msg: string; readonly pid: number; readonly method?: string }[] =>
  readFileSync(child.logFile, "utf8")
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line));
const pidsWith = (msg: string) => new Set(lines().flatMap((line) => (line.msg === msg ? line.pid : [])));

/** One call on a connection of its own; the account is absent, which a proxy says after it has asked. */
async function call(): Promise<string> {
  const client = createClient(ProxyServiceDefinition, {
    address: `127.0.0.1:${ports.proxyPublic}`,
    tls: { ca: stack.ca, trustDomain },
    service: "proxy",
  });
  const request = {
    projectId: stack.connection.project_id,
    environment: Environment.DEVELOPMENT,
    externalUserId: "ann",
  };
  try {
    await client.forward({ ...request, accountId: "apn_absent", method: "GET", url: "/" }, stack.call());
    return "answered";
  } catch (error) {
    return (error as { reason: string }).reason;
  } finally {
    client.close();
  }
}

test("serve side by side, are replaced when they die, and stop together", async () => {
  await expect.poll(() => pidsWith("the vault is watched").size, { timeout: 20_000 }).toBe(2);
  for (let i = 0; i < 6; i += 1) expect(await call()).toBe("ACCOUNT_NOT_FOUND");
  await expect.poll(() => pidsWith("call").size).toBe(2);
  const [doomed = 0] = pidsWith("call");
  process.kill(doomed, "SIGKILL");
  await expect.poll(() => pidsWith("the vault is watched").size, { timeout: 20_000 }).toBe(3);
  for (let i = 0; i < 4; i += 1) expect(await call()).toBe("ACCOUNT_NOT_FOUND");
  await child.stop();
  expect(child.process.exitCode).toBe(0);
  expect(pidsWith("stopped").size).toBe(3);
}, 60_000);
