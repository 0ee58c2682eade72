// What the refresh loop's benchmark runs on: Postgres that syncs its disk, with more memory than its default, true vault
// processes, token endpoints in a process of their own, and accounts whose tokens are truly sealed.
import { mkdirSync, writeFileSync } from "node:fs";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Connection, type DatabaseOptions, openConnection } from "#libs/database.ts";
import { createClient } from "#libs/rpc-client.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { operatorTls } from "../dev/bootstrap.ts";
import { type Child, startChild } from "../dev/child.ts";
import { freePorts } from "../dev/ports.ts";
import { startPostgres } from "../dev/postgres.ts";
import { sandboxRequest } from "../dev/sandbox-request.ts";
import { prepareState, readSecret, trustDomain } from "../dev/state.ts";
import { atDatabase, databaseRoles, provisionDatabases, restrictDatabase } from "../migrations/databases.ts";
import { migrate } from "../migrations/migrate.ts";
import type { EndpointStats, TokenHost } from "./token-endpoints.ts";

/** An app of the benchmark: each has a token endpoint's host of its own. */
export interface BenchApp extends Omit<TokenHost, "port"> {
  readonly slug: string;
  readonly refreshesPerMinute?: number;
}

/** What everything is measured on. */
export type LoopStand = Awaited<ReturnType<typeof openLoopStand>>;

// A server of Postgres' own choice has 128 MB: less than a million rows take.
const memory = { shared_buffers: "2GB", max_wal_size: "4GB", checkpoint_timeout: "15min" };

/** Starts Postgres and the token endpoints. */
export async function openLoopStand(apps: readonly BenchApp[], options: { readonly profile: boolean }) {
  const directory = await mkdtemp(join(tmpdir(), "deputy-bench-"));
  // Postgres runs under another user when started by root, and must get through.
  await chmod(directory, 0o711);
  const ends: (() => unknown)[] = [() => rm(directory, { recursive: true, force: true })];
  const close = async () => {
    for (const end of ends.splice(0).reverse()) await end();
  };
  try {
    return { ...(await open()), close };
  } catch (error) {
    await close();
    throw error;
  }

  async function open() {
    const state = await prepareState(directory, await freePorts());
    const postgres = await startTuned(state.postgres);
    ends.push(() => postgres.stop());
    const roles = {
      account: {
        runtime: readSecret(state.passwordFiles.account),
        owner: readSecret(state.passwordFiles["account-owner"]),
      },
      vault: { runtime: readSecret(state.passwordFiles.vault), owner: readSecret(state.passwordFiles["vault-owner"]) },
    };
    await provisionDatabases({ url: postgres.url, password: postgres.password, roles });
    const access = (database: string, user = "postgres", password = postgres.password): DatabaseOptions => {
      const url = new URL(atDatabase(postgres.url, database));
      url.username = user;
      return { url: url.href, password, applicationName: "bench", statementTimeoutMs: 0 };
    };
    const { database, owner, runtime } = databaseRoles("vault");
    const asOwner = access(database, owner, roles.vault.owner);
    await migrate({ database: "vault", url: asOwner.url, password: roles.vault.owner });
    const hosts = await withPorts(apps);
    const ca = readSecret(state.certificates.caFile);
    const child = (name: string, file: string, settings: Readonly<Record<string, string>>): Child => {
      const started = startChild({
        name,
        file,
        settings,
        logDirectory: state.logs,
        cacheDirectory: state.compileCache,
      });
      ends.push(() => started.stop());
      return started;
    };
    child("endpoints", "bench/token-endpoints.ts", {
      DEPUTY_BENCH_HOSTS: JSON.stringify(hosts),
      DEPUTY_BENCH_TLS_KEY_FILE: state.certificates.services.sandbox?.keyFile ?? "",
      DEPUTY_BENCH_TLS_CERTIFICATE_FILE: state.certificates.services.sandbox?.certificateFile ?? "",
    });
    const catalog = writeCatalog(join(directory, "bench-catalog"), hosts);

    /** One vault process more, from the time at which it serves. */
    async function startVault(name: string): Promise<Child> {
      const address = `127.0.0.1:${(await freePorts()).vault}`;
      const vault = child(name, "services/vault/main.ts", {
        DEPUTY_DEVELOPMENT: "true",
        DEPUTY_LOG_LEVEL: "warn",
        DEPUTY_TRUST_DOMAIN: trustDomain,
        DEPUTY_TLS_CA_FILE: state.certificates.caFile,
        DEPUTY_TLS_CERTIFICATE_FILE: state.certificates.services.vault?.certificateFile ?? "",
        DEPUTY_TLS_KEY_FILE: state.certificates.services.vault?.keyFile ?? "",
        DEPUTY_CATALOG_DIRECTORY: catalog,
        DEPUTY_VAULT_INTERNAL_ADDRESS: address,
        DEPUTY_DATABASE_URL: access(database, runtime).url,
        DEPUTY_DATABASE_PASSWORD_FILE: state.passwordFiles.vault,
        DEPUTY_KEYRING_FILE: state.keyringFile,
        DEPUTY_SIGNING_KEY_FILE: state.vaultSigningKeyFile,
        DEPUTY_SPOOL_DIRECTORY: join(directory, `spool-${name}`),
        DEPUTY_EGRESS_TEST_ALLOW: hosts.map(({ port }) => `localhost:${port}`).join(","),
        DEPUTY_EGRESS_CA_FILE: state.certificates.caFile,
        NODE_OPTIONS: ["--import=./bench/process-samples.ts", ...(options.profile ? ["--cpu-prof"] : [])].join(" "),
      });
      const client = createClient(CredentialVaultDefinition, { address, tls: operatorTls(state), service: "vault" });
      try {
        await until(async () => !(await client.getVaultStatus({}, { deadlineMs: Date.now() + 1_000 })).sealed);
      } finally {
        client.close();
      }
      return vault;
    }

    /** An empty database with the vault's tables. */
    async function createVaultDatabase(name: string): Promise<string> {
      await asAdmin(async (admin) => {
        await admin.query(`create database ${name} template ${database}`);
        await restrictDatabase(admin, name, "vault");
      });
      return name;
    }

    /** Takes them away, with what Postgres would still do for them behind the next measurement's back. */
    const dropDatabases = (names: readonly string[]) =>
      asAdmin(async (admin) => {
        for (const name of names) await admin.query(`drop database ${name} with (force)`);
        await admin.query("checkpoint");
      });

    async function asAdmin(work: (admin: Connection) => Promise<void>): Promise<void> {
      const admin = await openConnection(access("postgres"));
      await work(admin).finally(() => admin.end());
    }

    const endpointStats = async (slug: string): Promise<EndpointStats> => {
      const { port } = hosts.find((host) => host.slug === slug) ?? { port: 0 };
      return (await sandboxRequest(new URL(`https://localhost:${port}/stats`), ca)) as unknown as EndpointStats;
    };
    await until(async () => Boolean(await endpointStats(hosts[0]?.slug ?? "")));
    const say = (text: string) => console.log(`  ${text}`);
    return {
      access,
      database,
      keyringFile: state.keyringFile,
      startVault,
      createVaultDatabase,
      dropDatabases,
      endpointStats,
      say,
    };
  }
}

async function startTuned(dataDirectory: string) {
  const postgres = await startPostgres({ dataDirectory, durable: true });
  const { url, password } = postgres;
  const admin = await openConnection({ url, password, applicationName: "bench", statementTimeoutMs: 10_000 });
  for (const [name, value] of Object.entries(memory)) await admin.query(`alter system set ${name} = '${value}'`);
  await admin.end();
  await postgres.stop();
  return startPostgres({ dataDirectory, durable: true });
}

async function withPorts(apps: readonly BenchApp[]): Promise<readonly (BenchApp & TokenHost)[]> {
  const ports: number[] = [];
  while (ports.length < apps.length) ports.push(...Object.values(await freePorts()));
  return apps.map((app, index) => ({ ...app, port: ports[index] ?? 0 }));
}

/** One file for each app. JSON is YAML. */
function writeCatalog(directory: string, apps: readonly (BenchApp & TokenHost)[]): string {
  mkdirSync(directory);
  for (const { slug, port, refreshesPerMinute } of apps) {
    const url = `https://localhost:${port}`;
    const token = { url: `${url}/token`, ...(refreshesPerMinute && { refreshes_per_minute: refreshesPerMinute }) };
    const entry = {
      ...{ slug, name: slug, development: true, auth: "oauth2" },
      oauth2: { authorize: { url: `${url}/authorize` }, token },
      proxy: { enabled: true, base_url: url, inject: {} },
    };
    writeFileSync(join(directory, `${slug}.yaml`), JSON.stringify(entry));
  }
  return directory;
}

/** Waits until a condition holds; an error counts as no. */
async function until(condition: () => Promise<boolean>): Promise<void> {
  const giveUpMs = performance.now() + 20_000;
  for (;;) {
    try {
      if (await condition()) return;
    } catch (error) {
      if (performance.now() > giveUpMs) throw error;
    }
    await sleep(50);
  }
}
