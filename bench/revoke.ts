// `npm run bench:revoke`: a panic over 10,000 accounts while the provider's revocation endpoint fails three times in ten: 500s,
// 429s with Retry-After, dropped connections, silence. What has to hold: no account can be leased once its batch has answered,
// every account has a receipt, and in the end each revocation has been confirmed by the provider, none lost. The pauses
// between attempts are skipped, not shortened: whenever nothing is due, what waits is made due. Keeps its figures in
// bench/results/revoke.json.
import { once } from "node:events";
import { chmod, cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { openConnection } from "#libs/database.ts";
import { createLogger } from "#libs/log.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { ProviderRevocation, type RevocationReceipt } from "#proto/deputy/account/v1/accounts.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { InjectionLease } from "#proto/deputy/vault/v1/leases.ts";
import { serviceTls } from "../dev/bootstrap.ts";
import { startChild } from "../dev/child.ts";
import { freePorts } from "../dev/ports.ts";
import { type Stack, startStack } from "../dev/stack.ts";
import { readSecret } from "../dev/state.ts";
import { atDatabase } from "../migrations/databases.ts";
import { leaseHolds } from "../services/proxy/lease-holds.ts";
import { watchLeases } from "../services/proxy/watch-leases.ts";

const accountCount = Number(process.argv[2] ?? 10_000);
const batchSize = Math.min(1_000, accountCount);
const leasesTriedPerBatch = 20;
const giveUpMs = 15 * 60_000;
const oauthAppId = "oa_bench";
const proxyId = "prx_bench";
const within = (ms: number) => ({ deadlineMs: Date.now() + ms });

const stateDirectory = await mkdtemp(join(tmpdir(), "deputy-bench-"));
// Postgres runs under another user when started by root, and must get through.
await chmod(stateDirectory, 0o711);
const ports = await freePorts();
const stack = await startStack({ stateDirectory, ports, durable: false, logLevel: "error" });
const ends: (() => unknown)[] = [];
try {
  const result = await measure(stack);
  console.table(result);
  await writeFile(join(import.meta.dirname, "results/revoke.json"), `${JSON.stringify(result, undefined, 2)}\n`);
  const { accounts, receipts, leasedAfterwards, confirmed } = result;
  const holds = receipts === accounts && leasedAfterwards === 0 && confirmed === accounts;
  console.log(holds ? "holds: all unusable at once, a receipt each, none lost at the provider" : "DOES NOT HOLD");
  if (!holds) process.exitCode = 1;
} finally {
  for (const end of ends.reverse()) await end();
  await stack.stop();
  await rm(stateDirectory, { recursive: true, force: true });
}

async function measure(stack: Stack) {
  const provider = await startFlakyProvider(stack);
  await replaceVault(stack, provider.url);
  const asAccount = connect("account");
  const asProxy = connect("proxy");
  await untilOpen();
  await watch();
  const token = await accessToken();
  const accountIds = await storeAccounts();
  const db = await openConnection({
    ...{ url: atDatabase(stack.postgres.url, "deputy_vault"), password: stack.postgres.password },
    ...{ applicationName: "bench", statementTimeoutMs: 30_000 },
  });
  ends.push(() => db.end());

  const startMs = performance.now();
  const receipts: RevocationReceipt[] = [];
  const batchMs: number[] = [];
  let leasedAfterwards = 0;
  for (let from = 0; from < accountIds.length; from += batchSize) {
    const batch = accountIds.slice(from, from + batchSize);
    const batchStartMs = performance.now();
    receipts.push(...(await destroy(batch)));
    batchMs.push(performance.now() - batchStartMs);
    console.log(`${batch.length} accounts destroyed in ${Math.round(batchMs.at(-1) ?? 0)} ms`);
    leasedAfterwards += await countLeased(batch.slice(0, leasesTriedPerBatch));
  }
  const destroySeconds = batchMs.reduce((sum, ms) => sum + ms, 0) / 1000;
  const rounds = await drain();
  const drainSeconds = (performance.now() - startMs) / 1000;
  const states = await db.query<{ state: string; count: bigint }>(
    "select state, count(*) from revocations group by state",
  );
  const confirmedReceipts = (await Promise.all(batches().map(destroy))).flat();
  return {
    accounts: accountIds.length,
    receipts: new Set(receipts.map(({ accountId }) => accountId)).size,
    leasesTried: batchMs.length * leasesTriedPerBatch,
    leasedAfterwards,
    destroySeconds: round(destroySeconds),
    slowestBatchMs: Math.round(Math.max(...batchMs)),
    accountsPerSecond: Math.round(accountIds.length / destroySeconds),
    providerCalls: provider.count.calls,
    providerFaults: provider.count.faults,
    roundsOfAttempts: rounds,
    drainSeconds: round(drainSeconds),
    providerCallsPerSecond: Math.round(provider.count.calls / drainSeconds),
    confirmed: confirmedReceipts.filter(({ providerRevocation }) => providerRevocation === ProviderRevocation.DONE)
      .length,
    endStates: states.map(({ state, count }) => `${state} ${count}`).join(", "),
    cores: availableParallelism(),
    node: process.version,
  };

  function connect(service: string) {
    const tls = serviceTls(stack.state, service);
    const client = createClient(CredentialVaultDefinition, {
      address: stack.connection.grpc.vault,
      tls,
      service: "vault",
    });
    ends.push(() => client.close());
    return client;
  }

  function batches(): readonly (readonly string[])[] {
    const starts = Array.from({ length: Math.ceil(accountIds.length / batchSize) }, (_, index) => index * batchSize);
    return starts.map((from) => accountIds.slice(from, from + batchSize));
  }

  async function destroy(batch: readonly string[]): Promise<readonly RevocationReceipt[]> {
    const whose = { projectId: stack.connection.project_id, environment: Environment.DEVELOPMENT };
    return (await asAccount.destroyCredentials({ ...whose, accountIds: [...batch] }, within(120_000))).receipts;
  }

  async function untilOpen(): Promise<void> {
    const operator = connect("operator");
    for (const endMs = performance.now() + 20_000; performance.now() < endMs; await sleep(100)) {
      const status = await operator.getVaultStatus({}, within(1_000)).catch(() => undefined);
      if (status?.sealed === false) return;
    }
    throw new Error("the vault does not serve");
  }

  async function accessToken(): Promise<string> {
    const tls = {
      ca: readSecret(stack.connection.ca_file),
      trustDomain: stack.settings.vault.DEPUTY_TRUST_DOMAIN ?? "",
    };
    const address = stack.connection.grpc.account;
    const client = createClient(AccountServiceDefinition, { address, tls, service: "account" });
    ends.push(() => client.close());
    const value = { clientId: stack.connection.client_id, clientSecret: stack.connection.client_secret };
    const grant = { $case: "clientCredentials", value } as const;
    return (await client.issueAccessToken({ grant }, within(10_000))).accessToken;
  }

  /** Leases are given to proxies that hear when they end. */
  async function watch(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const holds = leaseHolds<InjectionLease>({ monotonicMs: () => performance.now(), wallMs: Date.now });
    const onChange = (watching: boolean) => watching && resolve();
    const log = createLogger("bench", "silent");
    const watching = watchLeases({ vault: asProxy, proxyId, holds, log, onChange });
    ends.push(() => watching.stop());
    await promise;
  }

  async function storeAccounts(): Promise<readonly string[]> {
    const { project_id: projectId } = stack.connection;
    const client = { projectId, oauthAppId, appSlug: "sandbox", clientId: "deputy", clientSecrets: ["any"] };
    await asAccount.putOauthClient(client, within(10_000));
    const ids = Array.from({ length: accountCount }, (_, index) => `apn_bench_${String(index).padStart(5, "0")}`);
    const left = [...ids];
    const expireTime = new Date(Date.now() + 3_600_000);
    const worker = async () => {
      for (let accountId = left.pop(); accountId !== undefined; accountId = left.pop()) {
        const value = { accessToken: `access-${accountId}`, refreshToken: `refresh-${accountId}`, expireTime };
        const subject = { projectId, environment: Environment.DEVELOPMENT, externalUserId: "bench", accountId };
        const request = { ...subject, appSlug: "sandbox", oauthAppId, material: { $case: "grant", value } as const };
        await asAccount.storeCredential(request, within(30_000));
      }
    };
    await Promise.all(Array.from({ length: 16 }, worker));
    return ids;
  }

  async function countLeased(accounts: readonly string[]): Promise<number> {
    const whose = { projectId: stack.connection.project_id, environment: Environment.DEVELOPMENT };
    const tries = accounts.map((accountId) =>
      asProxy
        .leaseInjection({ ...whose, externalUserId: "bench", accountId, proxyId }, { ...within(10_000), token })
        .then(
          () => 1,
          (error: { readonly reason?: string }) => (error.reason === "ACCOUNT_REVOKED" ? 0 : 1),
        ),
    );
    return (await Promise.all(tries)).reduce<number>((sum, leased) => sum + leased, 0);
  }

  /** Waits until the provider has confirmed all, and skips the pauses. Gives how often something was made due. */
  async function drain(): Promise<number> {
    let rounds = 1;
    for (const endMs = performance.now() + giveUpMs; performance.now() < endMs; await sleep(200)) {
      const [left] = await db.query<{ pending: bigint; due: bigint }>(`
        select (select count(*) from revocations where state = 'PENDING') as pending,
          (select count(*) from graphile_worker._private_jobs where run_at <= now() and attempts < max_attempts) as due`);
      if (left === undefined || left.pending === 0n) return rounds;
      if (left.due > 0n) continue;
      await db.query(
        "update graphile_worker._private_jobs set run_at = now() where run_at > now() and locked_at is null",
      );
      rounds += 1;
    }
    return rounds;
  }
}

/** The provider's revocation endpoint on bad days: of a hundred calls in a row thirty fail. */
async function startFlakyProvider({ state }: Stack): Promise<{
  readonly url: string;
  readonly count: { calls: number; faults: number };
}> {
  const tls = serviceTls(state, "sandbox");
  const count = { calls: 0, faults: 0 };
  const server = createServer({ key: tls.key, cert: tls.certificate }, (request, response) => {
    request.resume();
    // 37 and 100 have no common divisor: the faults are spread over the hundred.
    const place = (count.calls++ * 37) % 100;
    if (place < 30) count.faults += 1;
    if (place < 12) response.writeHead(500).end();
    else if (place < 21) response.writeHead(429, { "retry-after": "2" }).end();
    // Each silence costs a place among those at work for ten seconds, so they are few.
    else if (place < 29 || (place === 29 && count.calls % 400 > 100)) request.socket.destroy();
    else if (place >= 30) response.writeHead(200).end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  ends.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `https://localhost:${(server.address() as AddressInfo).port}`, count };
}

/** A vault in the place of the stack's own, whose catalog sends revocations to another address. */
async function replaceVault(stack: Stack, url: string): Promise<void> {
  await stack.children.vault.stop();
  const catalog = join(stateDirectory, "bench-catalog");
  await cp(stack.state.catalog, catalog, { recursive: true });
  const file = join(catalog, "sandbox.yaml");
  const text = await readFile(file, "utf8");
  const address = `localhost:${ports.sandbox}`;
  await writeFile(file, text.replace(`https://${address}/token/revocation`, `${url}/revoke`));
  const child = startChild({
    name: "vault-bench",
    file: "services/vault/main.ts",
    settings: {
      ...stack.settings.vault,
      DEPUTY_CATALOG_DIRECTORY: catalog,
      DEPUTY_EGRESS_TEST_ALLOW: `${address},${new URL(url).host}`,
    },
    logDirectory: stack.state.logs,
    cacheDirectory: stack.state.compileCache,
  });
  ends.push(() => child.stop());
}

function round(value: number): number {
  return Number(value.toFixed(2));
}
