// A vault as a true process of its own, on a fixture's database, provider and keyring: one that can be killed.
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Client } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { type Child, startChild } from "../../dev/child.ts";
import { freePorts } from "../../dev/ports.ts";
import type { VaultFixture } from "../vault/vault-fixture.ts";
import { testTls } from "./tls.ts";

type Vault = Client<typeof CredentialVaultDefinition>;

/** A vault process at work. */
export interface VaultProcess {
  readonly child: Child;
  readonly log: () => string;
  readonly asAccount: Vault;
  readonly asProxy: Vault;
  signal(name: "SIGKILL" | "SIGSTOP" | "SIGCONT" | "SIGTERM"): void;
  /** Resolves with the signal or the status by which it ended. */
  readonly ended: Promise<NodeJS.Signals | number | null>;
}

let processes = 0;

/** Starts one and waits until it serves. It ends with the fixture. */
export async function startVaultProcess(
  vault: VaultFixture,
  settings: Readonly<Record<string, string>> = {},
): Promise<VaultProcess> {
  const name = `vault-process-${++processes}`;
  const directory = join(vault.directory, name);
  const catalog = join(directory, "catalog");
  mkdirSync(catalog, { recursive: true });
  // JSON is YAML.
  for (const [slug, app] of vault.catalog) writeFileSync(join(catalog, `${slug}.yaml`), JSON.stringify(app));
  const write = (file: string, text: string) => {
    writeFileSync(join(directory, file), text, { mode: 0o600 });
    return join(directory, file);
  };
  const tls = await testTls("vault");
  const address = `127.0.0.1:${(await freePorts()).vault}`;
  const ca = write("ca.pem", tls.ca);
  const child = startChild({
    name,
    file: "services/vault/main.ts",
    settings: {
      DEPUTY_DEVELOPMENT: "true",
      DEPUTY_TRUST_DOMAIN: tls.trustDomain,
      DEPUTY_TLS_CA_FILE: ca,
      DEPUTY_TLS_CERTIFICATE_FILE: write("certificate.pem", tls.certificate ?? ""),
      DEPUTY_TLS_KEY_FILE: write("key.pem", tls.key ?? ""),
      DEPUTY_CATALOG_DIRECTORY: catalog,
      DEPUTY_VAULT_INTERNAL_ADDRESS: address,
      DEPUTY_ACCOUNT_ADDRESS: `127.0.0.1:${vault.account.internalPort}`,
      DEPUTY_DATABASE_URL: vault.database.runtime.url,
      DEPUTY_DATABASE_PASSWORD_FILE: write("password", vault.database.runtime.password),
      DEPUTY_KEYRING_FILE: vault.keyringFile,
      DEPUTY_SIGNING_KEY_FILE: vault.signingKeyFile,
      DEPUTY_EGRESS_TEST_ALLOW: vault.exemptTargets.join(","),
      DEPUTY_EGRESS_CA_FILE: ca,
      ...settings,
    },
    logDirectory: directory,
    cacheDirectory: join(vault.directory, "compile-cache"),
  });
  vault.ends.push(async () => {
    child.process.kill("SIGCONT");
    await child.stop();
  });
  const ended = once(child.process, "exit").then(([code, signal]) => signal ?? code);
  const log = () => readFileSync(child.logFile, "utf8");
  const deadlineMs = performance.now() + 20_000;
  while (!log().includes('"msg":"serving"')) {
    if (child.process.exitCode !== null || child.process.signalCode !== null || performance.now() > deadlineMs) {
      throw new Error(`${name} does not serve:\n${log()}`);
    }
    await sleep(30);
  }
  const connect = async (service: "account" | "proxy") => {
    const client = createClient(CredentialVaultDefinition, { address, tls: await testTls(service), service: "vault" });
    vault.ends.push(() => client.close());
    return client;
  };
  return {
    ...{ child, log, ended },
    asAccount: await connect("account"),
    asProxy: await connect("proxy"),
    signal: (signal) => void child.process.kill(signal),
  };
}
