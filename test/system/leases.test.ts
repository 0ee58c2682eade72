// Once DeleteAccount or RevokeAllAccounts has answered, no proxy starts a request with a destroyed credential: three proxies
// and two vaults as true processes, under load, with one proxy stopped, with one cut off from its vault, and while tokens are
// being refreshed. The upstream is the test's own and notes every request that starts.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, expect, test } from "vitest";
import type { Connection } from "#libs/database.ts";
import { createClient } from "#libs/rpc-client.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { type Child, startChild } from "../../dev/child.ts";
import { freePorts } from "../../dev/ports.ts";
import { trustDomain } from "../../dev/state.ts";
import { type Relay, startRelay } from "../support/relay.ts";
import { connectSandbox, openStackDatabase, startTestStack } from "../support/stack.ts";

const leaseMs = 10_000;
const tokenSeconds = 3;
const stack = await startTestStack({ accessTokenSeconds: tokenSeconds });
const { account, call, connection } = stack;
const whose = { projectId: connection.project_id, environment: Environment.DEVELOPMENT };
const upstream = await startUpstream();
const upstreamRelay = await ending(await startRelay(upstream.port));
const secondVault = await startVault();
const proxies = await Promise.all([
  startProxy("proxy-a", stack.ports.vault),
  startProxy("proxy-b", secondVault),
  startProxy("proxy-c", secondVault),
]);
const [proxyA, proxyB, proxyC] = proxies as [Proxy, Proxy, Proxy];

afterEach(() => {
  proxyC.child.process.kill("SIGCONT");
  for (const relay of [upstreamRelay, ...proxies.flatMap((proxy) => [proxy.toAccount, proxy.toVault])]) relay.release();
});

interface Proxy {
  readonly child: Child;
  readonly client: ReturnType<typeof createClient<typeof ProxyServiceDefinition>>;
  readonly toAccount: Relay;
  readonly toVault: Relay;
}

interface KeyAccount {
  readonly accountId: string;
  readonly externalUserId: string;
  readonly apiKey: string;
}

test("under load, no request starts after the answer, and the answer comes in one round trip", async ({ annotate }) => {
  const [doomed, other] = [await newAccount("load"), await newAccount("load")];
  let loading = true;
  const failures = new Set<string>();
  const loops = proxies.flatMap((proxy) =>
    [doomed, doomed, other].map(async (whom) => {
      while (loading) {
        const failure = await forward(proxy, whom).then(
          () => undefined,
          (error) => error.reason,
        );
        if (failure !== undefined) failures.add(failure);
        if (failure !== undefined) await sleep(20);
      }
    }),
  );
  await until(() => startsOf(doomed).length > 30 && startsOf(other).length > 15);
  // From now on requests have their lease and wait for a connection.
  upstreamRelay.hold("all");
  const holdMs = performance.now();
  await sleep(300);
  const answerMs = await timed(remove(doomed));
  const started = startsOf(doomed).length;
  upstreamRelay.release();
  await sleep(1_000);
  const otherStarts = startsOf(other).length;
  await until(() => startsOf(other).length > otherStarts + 15);
  loading = false;
  await Promise.all(loops);
  // What was on the wire already when the relay began to hold is seen now; it started before.
  expect(startsOf(doomed, holdMs)).toEqual([]);
  expect(startsOf(other, holdMs).length).toBeGreaterThan(15);
  expect([...failures].sort()).toEqual(["ACCOUNT_REVOKED"]);
  expect(answerMs).toBeLessThan(leaseMs);
  await annotate(`answered after ${answerMs.toFixed(0)} ms, ${started} requests before it`);
});

test("a stopped proxy with a lease in hand delays the answer by the lease time, and starts nothing when it goes on", async ({
  annotate,
}) => {
  const [doomed, cached] = [await newAccount("stopped"), await newAccount("cached")];
  await forward(proxyC, cached);
  const { answer } = await withLeaseInHand(proxyC, doomed);
  await forward(proxyC, cached);
  proxyC.child.process.kill("SIGSTOP");
  // Waits in the stopped process's socket from now on, and is the first thing that it reads.
  proxyC.toAccount.release();
  const fromMemory = forward(proxyC, cached);
  fromMemory.catch(() => undefined);
  const answerMs = await timed(Promise.all([remove(doomed), remove(cached)]));
  const started = await startsAfterAnswer(doomed);
  const cachedStarted = startsOf(cached).length;
  proxyC.child.process.kill("SIGCONT");
  // The latter when a ping was under way as the process stopped, and its time is up when it goes on.
  await expect(answer).rejects.toMatchObject({ reason: expect.stringMatching(/^(ACCOUNT_REVOKED|UNAVAILABLE)$/) });
  await expect(fromMemory).rejects.toMatchObject({ reason: expect.stringMatching(/^(ACCOUNT_|UNAVAILABLE$)/) });
  await sleep(500);
  expect(startsOf(doomed)).toHaveLength(started);
  expect(startsOf(cached)).toHaveLength(cachedStarted);
  expect(answerMs).toBeLessThan(leaseMs + 2_000);
  expect(answerMs).toBeGreaterThan(leaseMs - 2_000);
  await annotate(`answered after ${answerMs.toFixed(0)} ms`);
}, 60_000);

test("a proxy cut off from its vault delays the answer by the lease time, and starts nothing meanwhile or later", async ({
  annotate,
}) => {
  const doomed = await newAccount("cut-off");
  await forward(proxyB, await newAccount("first"));
  const { answer } = await withLeaseInHand(proxyB, doomed);
  proxyB.toVault.hold("all");
  const removed = timed(remove(doomed));
  // It has noticed the silence by itself; its lease would still last.
  await sleep(4_000);
  const started = startsOf(doomed).length;
  proxyB.toAccount.release();
  await expect(answer).rejects.toMatchObject({ reason: "VAULT_UNREACHABLE" });
  const answerMs = await removed;
  await expect(forward(proxyB, doomed)).rejects.toMatchObject({ reason: "VAULT_UNREACHABLE" });
  expect(startsOf(doomed)).toHaveLength(started);
  // Nobody waits for it any longer, and it finds its way back.
  const longSilent = `update lease_watchers set last_seen_time = last_seen_time - interval '16 seconds'
    where last_seen_time < clock_timestamp() - interval '5 seconds' returning proxy_id`;
  await inVault(async (db) => expect(await db.query(longSilent)).toHaveLength(1));
  const next = await newAccount("after");
  expect(await timed(remove(next))).toBeLessThan(2_000);
  proxyB.toVault.release();
  const healed = await newAccount("healed");
  await until(async () => (await forward(proxyB, healed).catch(() => undefined))?.status === 200, 20_000);
  await expect(forward(proxyB, doomed)).rejects.toMatchObject({ reason: expect.stringMatching(/^ACCOUNT_/) });
  expect(startsOf(doomed)).toHaveLength(started);
  await annotate(`answered after ${answerMs.toFixed(0)} ms`);
}, 90_000);

test("200 forwards that need a refresh race RevokeAllAccounts, and nothing comes back to life", async ({
  annotate,
}) => {
  const externalUserId = "race";
  const accountIds: string[] = [];
  for (let index = 0; index < 8; index += 1) accountIds.push(await connectSandbox(stack, externalUserId));
  expect(new Set(accountIds).size).toBe(8);
  await sleep(tokenSeconds * 1_000);
  const request = (accountId: string) => ({ ...whose, externalUserId, accountId, method: "GET", url: "/echo/x" });
  const forwards = Array.from({ length: 200 }, async (_, index) => {
    await sleep(Math.random() * 1_000);
    const proxy = proxies[index % 3] ?? proxyA;
    return proxy.client.forward(request(accountIds[index % 8] ?? ""), call()).then(
      ({ status }) => String(status),
      (error) => error.reason,
    );
  });
  await sleep(400);
  const target = { $case: "externalUserId", value: externalUserId } as const;
  const receipts = await Array.fromAsync(account.revokeAllAccounts({ ...whose, target }, call()));
  expect(receipts).toHaveLength(8);
  const outcomes = await Promise.all(forwards);
  // 401 is the upstream's own word to a request that was on its way when the provider heard of the revocation.
  expect(outcomes.filter((one) => one !== "200" && one !== "401" && !/^ACCOUNT_/.test(one))).toEqual([]);
  for (const [index, accountId] of accountIds.entries()) {
    const refused = (proxies[index % 3] ?? proxyA).client.forward(request(accountId), call());
    await expect(refused).rejects.toMatchObject({ reason: expect.stringMatching(/^ACCOUNT_/) });
  }
  await inVault(async (db) => {
    await until(async () => {
      const [row] = await db.query<{ pending: bigint }>(
        "select count(*) as pending from revocations where state <> 'DONE'",
      );
      return row?.pending === 0n;
    }, 20_000);
    const left = await db.query(
      "select account_id from credentials where account_id = any($1) and (state <> 'REVOKED' or wrapped_data_key is not null)",
      [accountIds],
    );
    expect(left).toEqual([]);
    const [told] = await db.query<{ count: bigint }>("select count(*) from revocations where account_id = any($1)", [
      accountIds,
    ]);
    await annotate(`${outcomes.filter((one) => one === "200").length} of 200 in time, ${told?.count} grants revoked`);
  });
}, 60_000);

test("a vault stops at once, though proxies watch at it", async () => {
  const stopMs = await timed(stack.children.vault.stop());
  expect(stack.children.vault.process.exitCode).toBe(0);
  expect(stopMs).toBeLessThan(4_000);
});

async function inVault(work: (db: Connection) => Promise<unknown>): Promise<void> {
  const db = await openStackDatabase(stack, "deputy_vault");
  try {
    await work(db);
  } finally {
    await db.end();
  }
}

/** Lets a request get its lease and then wait, for what the account service has answered before. */
async function withLeaseInHand(proxy: Proxy, whom: KeyAccount): Promise<{ readonly answer: Promise<unknown> }> {
  const leases = () => readFileSync(secondVaultLog(), "utf8").split('"LeaseInjection"').length;
  const before = leases();
  proxy.toAccount.hold("answers");
  const answer = forward(proxy, whom);
  answer.catch(() => undefined);
  await until(() => leases() > before);
  await sleep(200);
  return { answer };
}

/** What has started when the answer has come: bytes that arrived before it may still be unread in this process. */
async function startsAfterAnswer(whom: KeyAccount): Promise<number> {
  await sleep(20);
  return startsOf(whom).length;
}

/** Requests that the upstream has seen, on connections made after a time if one is given. */
function startsOf({ apiKey }: KeyAccount, connectedAfterMs = 0) {
  return upstream.starts.filter(({ key, connectMs }) => key === apiKey && connectMs > connectedAfterMs);
}

async function newAccount(externalUserId: string): Promise<KeyAccount> {
  const apiKey = `sandbox-key-${externalUserId}-${Math.random().toString(36).slice(2)}`;
  const credential = { $case: "fields", value: { values: { api_key: apiKey } } } as const;
  const request = { ...whose, externalUserId, appSlug: "sandbox_header_key", credential };
  const { account: made } = await account.createAccount(request, call());
  return { accountId: made?.id ?? "", externalUserId, apiKey };
}

function forward({ client }: Proxy, { accountId, externalUserId }: KeyAccount) {
  const url = `https://localhost:${upstreamRelay.port}/x`;
  const request = { ...whose, externalUserId, accountId, method: "GET", url };
  return client.forward(request, { ...call(), deadlineMs: Date.now() + 30_000 });
}

function remove({ accountId }: KeyAccount) {
  return account.deleteAccount({ ...whose, accountId }, { ...call(), deadlineMs: Date.now() + 30_000 });
}

/** Notes the key of each request as its head arrives; every request needs a connection of its own. */
async function startUpstream() {
  const files = stack.state.certificates.services.sandbox;
  const [key, cert] = [readFileSync(files?.keyFile ?? ""), readFileSync(files?.certificateFile ?? "")];
  const starts: { key: string; connectMs: number }[] = [];
  const connectTimes = new Map<number | undefined, number>();
  const server = createServer({ key, cert }, ({ headers, socket }, response) => {
    starts.push({ key: String(headers["x-api-key"]), connectMs: connectTimes.get(socket.remotePort) ?? 0 });
    response.writeHead(200, { connection: "close" }).end("{}");
  });
  server.on("connection", ({ remotePort }) => connectTimes.set(remotePort, performance.now()));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  afterAll(() => {
    server.closeAllConnections();
    server.close();
  });
  return { starts, port: (server.address() as AddressInfo).port };
}

async function ending(relay: Relay): Promise<Relay> {
  afterAll(() => relay.stop());
  return relay;
}

function start(name: string, file: string, settings: Readonly<Record<string, string>>): Child {
  const { logs: logDirectory, compileCache: cacheDirectory } = stack.state;
  const child = startChild({ name, file, settings, logDirectory, cacheDirectory });
  afterAll(() => child.stop());
  return child;
}

function secondVaultLog(): string {
  return `${stack.state.logs}/vault-2.log`;
}

async function startVault(): Promise<number> {
  const { vault: port } = await freePorts();
  start("vault-2", "services/vault/main.ts", {
    ...stack.settings.vault,
    DEPUTY_VAULT_INTERNAL_ADDRESS: `127.0.0.1:${port}`,
  });
  return port;
}

async function startProxy(name: string, vaultPort: number): Promise<Proxy> {
  const ports = await freePorts();
  const [toAccount, toVault] = [
    await ending(await startRelay(stack.ports.account)),
    await ending(await startRelay(vaultPort)),
  ];
  const child = start(name, "services/proxy/main.ts", {
    ...stack.settings.proxy,
    DEPUTY_ACCOUNT_ADDRESS: `127.0.0.1:${toAccount.port}`,
    DEPUTY_VAULT_ADDRESS: `127.0.0.1:${toVault.port}`,
    DEPUTY_EGRESS_TEST_ALLOW: `localhost:${stack.ports.sandbox},localhost:${upstreamRelay.port}`,
    DEPUTY_PROXY_INTERNAL_ADDRESS: `127.0.0.1:${ports.proxy}`,
    DEPUTY_PROXY_PUBLIC_ADDRESS: `127.0.0.1:${ports.proxyPublic}`,
  });
  const address = `127.0.0.1:${ports.proxyPublic}`;
  const client = createClient(ProxyServiceDefinition, {
    address,
    tls: { ca: stack.ca, trustDomain },
    service: "proxy",
  });
  afterAll(() => client.close());
  await until(() => readFileSync(child.logFile, "utf8").includes("the vault is watched"), 20_000);
  return { child, client, toAccount, toVault };
}

async function timed(work: Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await work;
  return performance.now() - startMs;
}

async function until(condition: () => Promise<boolean> | boolean, withinMs = 15_000): Promise<void> {
  const giveUpMs = performance.now() + withinMs;
  while (!(await condition())) {
    if (performance.now() > giveUpMs) throw new Error("did not come true in time");
    await sleep(25);
  }
}
