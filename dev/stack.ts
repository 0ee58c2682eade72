// The whole of Deputy on this machine, as true processes: Postgres, vault, account, proxy, gateway, and a sandbox provider.
// Used by `npm start`, by the system tests and by the benchmarks. What a deployment does with files and variables, this
// does with a state directory.
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "#libs/rpc-client.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { atDatabase, provisionDatabases } from "../migrations/databases.ts";
import { migrate } from "../migrations/migrate.ts";
import { type ConnectionFile, ensureConnection, operatorTls } from "./bootstrap.ts";
import { type Child, failure, startChild } from "./child.ts";
import { type Ports, requireFree } from "./ports.ts";
import { type Postgres, startPostgres } from "./postgres.ts";
import { prepareState, readSecret, type State, trustDomain } from "./state.ts";

/** How a stack is to be. */
export interface StackOptions {
  readonly stateDirectory: string;
  readonly ports: Ports;
  /** Whether data must survive a crash of the machine. Tests do without. */
  readonly durable: boolean;
  readonly accessTokenSeconds?: number;
  readonly logLevel?: string;
  /** Told of each step. */
  readonly onProgress?: (step: string) => void;
}

/** A stack at work. */
export interface Stack {
  readonly connection: ConnectionFile;
  readonly state: State;
  readonly postgres: Postgres;
  readonly children: Readonly<Record<ServiceName | "sandbox", Child>>;
  /** Settings of a service, to start one more of it. */
  readonly settings: Readonly<Record<ServiceName, Readonly<Record<string, string>>>>;
  /** Settles when any process has ended by itself. */
  readonly broken: Promise<never>;
  stop(): Promise<void>;
}

type ServiceName = "account" | "vault" | "proxy" | "gateway";

const healthDeadlineMs = 30_000;

/** Starts everything and waits until it serves. Throws one clear sentence when it cannot, and leaves nothing running. */
export async function startStack(options: StackOptions): Promise<Stack> {
  const { ports, onProgress = () => {} } = options;
  await requireFree(ports);
  const state = await prepareState(options.stateDirectory, ports);
  const running: { stop(): Promise<void> }[] = [];
  const stop = async () => {
    for (const part of running.splice(0).reverse()) await part.stop();
  };
  try {
    onProgress("starting Postgres");
    const postgres = await startPostgres({ dataDirectory: state.postgres, durable: options.durable });
    running.push(postgres);
    onProgress("migrating the databases");
    await prepareDatabases(postgres, state);
    onProgress("starting account, vault, proxy, gateway and the sandbox provider");
    const settings = serviceSettings(options, state, postgres);
    const start = (name: ServiceName | "sandbox", file: string, values: Readonly<Record<string, string>>) => {
      const child = startChild({
        name,
        file,
        settings: values,
        logDirectory: state.logs,
        cacheDirectory: state.compileCache,
      });
      running.push(child);
      return child;
    };
    const children = {
      vault: start("vault", "services/vault/main.ts", settings.vault),
      account: start("account", "services/account/main.ts", settings.account),
      proxy: start("proxy", "services/proxy/main.ts", settings.proxy),
      gateway: start("gateway", "services/gateway/main.ts", settings.gateway),
      sandbox: start("sandbox", "dev/sandbox-provider.ts", sandboxSettings(options, state)),
    };
    const broken = Promise.race(Object.values(children).map(failure));
    broken.catch(() => {});
    await Promise.race([broken, waitUntilHealthy(ports, state)]);
    const connection = await Promise.race([broken, ensureConnection(state, ports)]);
    return { connection, state, postgres, children, settings, broken, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function prepareDatabases(postgres: Postgres, { passwordFiles }: State): Promise<void> {
  const roles = {
    account: { runtime: readSecret(passwordFiles.account), owner: readSecret(passwordFiles["account-owner"]) },
    vault: { runtime: readSecret(passwordFiles.vault), owner: readSecret(passwordFiles["vault-owner"]) },
  };
  await provisionDatabases({ url: postgres.url, password: postgres.password, roles });
  for (const database of ["account", "vault"] as const) {
    await migrate({ database, url: databaseUrl(postgres, database, "_owner"), password: roles[database].owner });
  }
}

function databaseUrl(postgres: Postgres, database: "account" | "vault", suffix = ""): string {
  const url = new URL(atDatabase(postgres.url, `deputy_${database}`));
  url.username = `deputy_${database}${suffix}`;
  return url.href;
}

function serviceSettings({ ports, logLevel = "info" }: StackOptions, state: State, postgres: Postgres) {
  const local = (port: number) => `127.0.0.1:${port}`;
  const gatewayUrl = `http://${local(ports.gateway)}`;
  const common = (service: ServiceName) => ({
    DEPUTY_DEVELOPMENT: "true",
    DEPUTY_LOG_LEVEL: logLevel,
    DEPUTY_TRUST_DOMAIN: trustDomain,
    DEPUTY_TLS_CA_FILE: state.certificates.caFile,
    DEPUTY_TLS_CERTIFICATE_FILE: state.certificates.services[service]?.certificateFile ?? "",
    DEPUTY_TLS_KEY_FILE: state.certificates.services[service]?.keyFile ?? "",
    DEPUTY_ACCOUNT_ADDRESS: local(ports.account),
    DEPUTY_VAULT_ADDRESS: local(ports.vault),
    DEPUTY_PROXY_ADDRESS: local(ports.proxy),
    DEPUTY_CATALOG_DIRECTORY: state.catalog,
    DEPUTY_GATEWAY_URL: gatewayUrl,
  });
  const egress = {
    DEPUTY_EGRESS_TEST_ALLOW: `localhost:${ports.sandbox}`,
    DEPUTY_EGRESS_CA_FILE: state.certificates.caFile,
  };
  return {
    account: {
      ...common("account"),
      ...egress,
      DEPUTY_ACCOUNT_INTERNAL_ADDRESS: local(ports.account),
      DEPUTY_ACCOUNT_PUBLIC_ADDRESS: local(ports.accountPublic),
      DEPUTY_DATABASE_URL: databaseUrl(postgres, "account"),
      DEPUTY_DATABASE_PASSWORD_FILE: state.passwordFiles.account,
      DEPUTY_TOKEN_KEY_FILE: state.tokenKeyFile,
      // Demos, tests and benchmarks make users without end.
      DEPUTY_DEVELOPMENT_USERS: "0",
    },
    vault: {
      ...common("vault"),
      ...egress,
      DEPUTY_VAULT_INTERNAL_ADDRESS: local(ports.vault),
      DEPUTY_DATABASE_URL: databaseUrl(postgres, "vault"),
      DEPUTY_DATABASE_PASSWORD_FILE: state.passwordFiles.vault,
      DEPUTY_KEYRING_FILE: state.keyringFile,
      DEPUTY_SIGNING_KEY_FILE: state.vaultSigningKeyFile,
      DEPUTY_SPOOL_DIRECTORY: state.spool,
    },
    proxy: {
      ...common("proxy"),
      ...egress,
      DEPUTY_PROXY_INTERNAL_ADDRESS: local(ports.proxy),
      DEPUTY_PROXY_PUBLIC_ADDRESS: local(ports.proxyPublic),
    },
    gateway: { ...common("gateway"), DEPUTY_GATEWAY_ADDRESS: local(ports.gateway) },
  };
}

function sandboxSettings({ ports, accessTokenSeconds = 3600 }: StackOptions, state: State) {
  return {
    DEPUTY_SANDBOX_PORT: String(ports.sandbox),
    DEPUTY_SANDBOX_HOSTNAME: "localhost",
    DEPUTY_SANDBOX_CLIENT_ID: "deputy",
    DEPUTY_SANDBOX_CLIENT_SECRET_FILE: state.passwordFiles["sandbox-client"],
    DEPUTY_SANDBOX_REDIRECT_URIS: `http://127.0.0.1:${ports.gateway}/oauth/callback`,
    DEPUTY_SANDBOX_ACCESS_TOKEN_SECONDS: String(accessTokenSeconds),
    DEPUTY_SANDBOX_STATE_DIRECTORY: state.sandbox,
    DEPUTY_SANDBOX_TLS_KEY_FILE: state.certificates.services.sandbox?.keyFile ?? "",
    DEPUTY_SANDBOX_TLS_CERTIFICATE_FILE: state.certificates.services.sandbox?.certificateFile ?? "",
  };
}

/** Waits for the vault, and for the gateway to say that account and proxy answer it. */
async function waitUntilHealthy(ports: Ports, state: State): Promise<void> {
  const vault = createClient(CredentialVaultDefinition, {
    address: `127.0.0.1:${ports.vault}`,
    tls: operatorTls(state),
    service: "vault",
  });
  const deadlineMs = Date.now() + healthDeadlineMs;
  let fault = "";
  const attempt = async () => {
    const { sealed, sealedReason } = await vault.getVaultStatus({}, { deadlineMs: Date.now() + 1_000 });
    if (sealed) throw new Error(`the vault is sealed: ${sealedReason}`);
    const answer = await fetch(`http://127.0.0.1:${ports.gateway}/healthz`);
    if (!answer.ok) throw new Error(`the gateway says: ${await answer.text()}`);
  };
  try {
    while (Date.now() < deadlineMs) {
      try {
        return await attempt();
      } catch (error) {
        fault = (error as Error).message;
        await sleep(100);
      }
    }
    throw new Error(`Deputy was not healthy within ${healthDeadlineMs / 1000} s: ${fault}. Logs are in ${state.logs}.`);
  } finally {
    vault.close();
  }
}
