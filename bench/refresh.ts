// `npm run bench:refresh`: the refresh under contention. Four vault processes, a hundred callers of each, two hundred accounts
// whose tokens have all ended, at a provider that rotates strictly and kills a grant whose refresh token comes twice. What has
// to hold: one token call for each account, no grant killed, every caller served. How long it takes depends on the machine;
// the processes, the provider, Postgres and the callers share it. Keeps its figures in bench/results/refresh.json.
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Connection, openConnection } from "#libs/database.ts";
import { createLogger } from "#libs/log.ts";
import type { Client, TlsIdentity } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { InjectionLease } from "#proto/deputy/vault/v1/leases.ts";
import { serviceTls } from "../dev/bootstrap.ts";
import { startChild } from "../dev/child.ts";
import { freePorts } from "../dev/ports.ts";
import { answerConsent } from "../dev/sandbox-consent.ts";
import { sandboxRequest } from "../dev/sandbox-request.ts";
import { type Stack, startStack } from "../dev/stack.ts";
import { readSecret } from "../dev/state.ts";
import { atDatabase } from "../migrations/databases.ts";
import { leaseHolds } from "../services/proxy/lease-holds.ts";
import { watchLeases } from "../services/proxy/watch-leases.ts";

type Vault = Client<typeof CredentialVaultDefinition> & { close(): void };

const vaultCount = 4;
const callersPerVault = 100;
const accountCount = 200;
// Each caller asks for so many accounts, one after the other: every account is asked for twenty times, from all four vaults.
const leasesPerCaller = 10;
const oauthAppId = "oa_bench";
const proxyId = "prx_bench";

const stateDirectory = await mkdtemp(join(tmpdir(), "deputy-bench-"));
// Postgres runs under another user when started by root, and must get through.
await chmod(stateDirectory, 0o711);
const ports = await freePorts();
const stack = await startStack({ stateDirectory, ports, durable: false, logLevel: "warn" });
const ends: (() => unknown)[] = [];
try {
  const result = await measure(stack);
  console.table(result);
  await writeFile(join(import.meta.dirname, "results/refresh.json"), `${JSON.stringify(result, undefined, 2)}\n`);
  const { accounts, callers, served, tokenCalls, grantsKilled, accountsAtNextGeneration } = result;
  const holds =
    served === callers * leasesPerCaller &&
    tokenCalls === accounts &&
    grantsKilled === 0 &&
    accountsAtNextGeneration === accounts;
  console.log(holds ? "holds: one token call each, no grant killed, every caller served" : "DOES NOT HOLD");
  if (!holds) process.exitCode = 1;
} finally {
  for (const end of ends.reverse()) await end();
  await stack.stop();
  await rm(stateDirectory, { recursive: true, force: true });
}

async function measure({ connection, state, settings, postgres }: Stack) {
  const ca = readSecret(connection.ca_file);
  const vaults = await startVaults(settings.vault);
  const asProxy = vaults.map((address) => connect(address, serviceTls(state, "proxy")));
  await watch(asProxy);
  const accounts = await connectAccounts(connect(connection.grpc.vault, serviceTls(state, "account")), ca);
  const token = await accessToken();
  const db = await openConnection({
    ...{ url: atDatabase(postgres.url, "deputy_vault"), password: postgres.password },
    ...{ applicationName: "bench", statementTimeoutMs: 10_000 },
  });
  ends.push(() => db.end());
  // Unseen by the vaults' loops, so that the callers are what is measured.
  await db.query("update credentials set expire_time = now() - interval '1 second', next_refresh_time = null");
  const before = await providerStats(ca);
  const startMs = performance.now();
  const waits = (
    await Promise.all(asProxy.flatMap((client, place) => callersOf(client, place, accounts, token)))
  ).flat();
  const seconds = (performance.now() - startMs) / 1000;
  const after = await providerStats(ca);
  const sorted = waits.filter(({ served }) => served).map(({ waitMs }) => waitMs);
  sorted.sort((a, b) => a - b);
  const at = (share: number) => Math.round(sorted[Math.floor((sorted.length - 1) * share)] ?? 0);
  return {
    vaults: vaultCount,
    callers: vaultCount * callersPerVault,
    accounts: accounts.length,
    leases: waits.length,
    served: sorted.length,
    tokenCalls: after.refreshes - before.refreshes,
    grantsKilled: after.grantsKilled - before.grantsKilled,
    accountsAtNextGeneration: await countAtGeneration(db, 2),
    seconds: Number(seconds.toFixed(2)),
    leaseP50Ms: at(0.5),
    leaseP99Ms: at(0.99),
    cores: availableParallelism(),
    node: process.version,
  };

  async function accessToken(): Promise<string> {
    const client = createClient(AccountServiceDefinition, {
      address: connection.grpc.account,
      tls: { ca, trustDomain: settings.vault.DEPUTY_TRUST_DOMAIN ?? "" },
      service: "account",
    });
    ends.push(() => client.close());
    const value = { clientId: connection.client_id, clientSecret: connection.client_secret };
    const asked = { grant: { $case: "clientCredentials", value } as const };
    return (await client.issueAccessToken(asked, { deadlineMs: Date.now() + 10_000 })).accessToken;
  }

  /** Leases are given to proxies that hear when they end: the callers pass for one, which any vault may hear. */
  async function watch([vault]: readonly Vault[]): Promise<void> {
    if (vault === undefined) throw new Error("no vault was started");
    const { promise, resolve } = Promise.withResolvers<void>();
    const holds = leaseHolds<InjectionLease>({ monotonicMs: () => performance.now(), wallMs: Date.now });
    const onChange = (watching: boolean) => watching && resolve();
    const watching = watchLeases({ vault, proxyId, holds, log: createLogger("bench", "silent"), onChange });
    ends.push(() => watching.stop());
    await promise;
  }

  function connect(address: string, tls: TlsIdentity): Vault {
    const client = createClient(CredentialVaultDefinition, { address, tls, service: "vault" });
    ends.push(() => client.close());
    return client;
  }

  /** Three vaults beside the stack's own; gives the addresses of all. */
  async function startVaults(common: Readonly<Record<string, string>>): Promise<readonly string[]> {
    const addresses = [connection.grpc.vault];
    for (let place = 2; place <= vaultCount; place += 1) {
      const address = `127.0.0.1:${(await freePorts()).vault}`;
      const child = startChild({
        name: `vault-${place}`,
        file: "services/vault/main.ts",
        settings: {
          ...common,
          DEPUTY_VAULT_INTERNAL_ADDRESS: address,
          DEPUTY_SPOOL_DIRECTORY: join(stateDirectory, `spool-${place}`),
        },
        logDirectory: state.logs,
        cacheDirectory: state.compileCache,
      });
      ends.push(() => child.stop());
      addresses.push(address);
      await untilOpen(connect(address, serviceTls(state, "operator")));
    }
    return addresses;
  }

  /** Each by its own consent, as a browser would. */
  async function connectAccounts(vault: Vault, authority: string): Promise<readonly string[]> {
    const call = () => ({ deadlineMs: Date.now() + 20_000 });
    const clientSecrets = [readSecret(state.passwordFiles["sandbox-client"])];
    const client = { projectId: connection.project_id, oauthAppId, appSlug: "sandbox", clientId: "deputy" };
    await vault.putOauthClient({ ...client, clientSecrets }, call());
    const accountIds = Array.from({ length: accountCount }, (_, index) => `apn_bench_${index}`);
    const left = [...accountIds];
    const worker = async () => {
      for (let accountId = left.pop(); accountId !== undefined; accountId = left.pop()) {
        const redirectUri = `${connection.gateway_url}/oauth/callback`;
        const request = { ...subjectOf(accountId), appSlug: "sandbox", oauthAppId, redirectUri };
        const { authorizationUrl } = await vault.startAuthorization(request, call());
        const back = new URL(await answerConsent({ authorizationUrl, decision: "allow", ca: authority }));
        const value = (name: string) => back.searchParams.get(name) ?? "";
        await vault.completeAuthorization({ state: value("state"), code: value("code"), issuer: value("iss") }, call());
      }
    };
    await Promise.all(Array.from({ length: 8 }, worker));
    return accountIds;
  }

  function subjectOf(accountId: string) {
    const { project_id: projectId } = connection;
    return { projectId, environment: Environment.DEVELOPMENT, externalUserId: "bench", accountId };
  }

  /** The callers of one vault: each begins elsewhere among the accounts, and the four vaults' ones at the same places. */
  function callersOf(client: Vault, vault: number, accountIds: readonly string[], bearer: string) {
    return Array.from({ length: callersPerVault }, async (_, caller) => {
      const waits: { served: boolean; waitMs: number }[] = [];
      for (let step = 0; step < leasesPerCaller; step += 1) {
        const accountId = accountIds[(caller * 2 + step + (vault % 2)) % accountIds.length] ?? "";
        const startMs = performance.now();
        const call = { deadlineMs: Date.now() + 60_000, token: bearer };
        const lease = await client.leaseInjection({ ...subjectOf(accountId), proxyId }, call).catch((error: Error) => {
          console.error(`${accountId}: ${error.message}`);
          return undefined;
        });
        waits.push({ served: lease?.lease?.generation === 2n, waitMs: performance.now() - startMs });
      }
      return waits;
    });
  }

  async function providerStats(authority: string): Promise<{ refreshes: number; grantsKilled: number }> {
    const stats = await sandboxRequest(new URL("/stats", connection.sandbox.api_url), authority);
    const { tokenRequests, familiesRevokedByReuse } = stats as {
      readonly tokenRequests: { readonly refresh_token?: Readonly<Record<string, number>> };
      readonly familiesRevokedByReuse: number;
    };
    const refreshes = Object.values(tokenRequests.refresh_token ?? {}).reduce((sum, count) => sum + count, 0);
    return { refreshes, grantsKilled: familiesRevokedByReuse };
  }
}

async function untilOpen(vault: Vault): Promise<void> {
  const endMs = performance.now() + 20_000;
  for (;;) {
    try {
      const { sealed } = await vault.getVaultStatus({}, { deadlineMs: Date.now() + 1_000 });
      if (!sealed) return;
    } catch (error) {
      if (performance.now() > endMs) throw error;
    }
    await sleep(100);
  }
}

async function countAtGeneration(db: Connection, generation: number): Promise<number> {
  const rows = await db.query<{ count: bigint }>("select count(*) from credentials where generation = $1", [
    generation,
  ]);
  return Number(rows[0]?.count ?? 0);
}
