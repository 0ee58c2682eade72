// An account service as a true process of its own, on a database that a test has: one that can be killed.
import { generateKeyPairSync } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll } from "vitest";
import { type Child, startChild } from "../../dev/child.ts";
import type { Access } from "./postgres.ts";
import { testTls } from "./tls.ts";

/** What the processes of a test have in common. */
export interface AccountProcessOptions {
  readonly database: Access;
  readonly vaultAddress: string;
  /** `host:port` of receivers on loopback. */
  readonly allowed: readonly string[];
}

/** A process at work. */
export interface AccountProcess {
  readonly child: Child;
  readonly log: () => string;
  /** Ends it at once. */
  kill(): Promise<void>;
}

/** Gives what starts one process after the other. All of them end with the file. */
export async function accountProcesses({ database, vaultAddress, allowed }: AccountProcessOptions) {
  const directory = mkdtempSync(join(tmpdir(), "deputy-account-process-"));
  const running = new Set<Child>();
  afterAll(async () => {
    for (const child of running) await child.stop();
    rmSync(directory, { recursive: true, force: true });
  });
  const tls = await testTls("account");
  const write = (file: string, text: string) => {
    writeFileSync(join(directory, file), text, { mode: 0o600 });
    return join(directory, file);
  };
  const tokenKey = generateKeyPairSync("ed25519").privateKey.export({ format: "pem", type: "pkcs8" }).toString();
  const ca = write("ca.pem", tls.ca);
  const settings = {
    DEPUTY_DEVELOPMENT: "true",
    DEPUTY_TRUST_DOMAIN: tls.trustDomain,
    DEPUTY_TLS_CA_FILE: ca,
    DEPUTY_TLS_CERTIFICATE_FILE: write("certificate.pem", tls.certificate),
    DEPUTY_TLS_KEY_FILE: write("key.pem", String(tls.key)),
    DEPUTY_ACCOUNT_INTERNAL_ADDRESS: "127.0.0.1:0",
    DEPUTY_ACCOUNT_PUBLIC_ADDRESS: "127.0.0.1:0",
    DEPUTY_VAULT_ADDRESS: vaultAddress,
    DEPUTY_DATABASE_URL: database.url,
    DEPUTY_DATABASE_PASSWORD_FILE: write("password", database.password),
    DEPUTY_TOKEN_KEY_FILE: write("token-key.pem", tokenKey),
    DEPUTY_EGRESS_TEST_ALLOW: allowed.join(","),
    DEPUTY_EGRESS_CA_FILE: ca,
  };
  let started = 0;

  /** Starts one and waits until it serves. */
  return async function start(): Promise<AccountProcess> {
    const name = `account-process-${++started}`;
    const logDirectory = join(directory, name);
    mkdirSync(logDirectory);
    const cacheDirectory = join(directory, "compile-cache");
    const child = startChild({ name, file: "services/account/main.ts", settings, logDirectory, cacheDirectory });
    running.add(child);
    const log = () => readFileSync(child.logFile, "utf8");
    const ended = () => child.process.exitCode !== null || child.process.signalCode !== null;
    for (const deadlineMs = performance.now() + 30_000; !log().includes('"msg":"serving"'); await sleep(30)) {
      if (ended() || performance.now() > deadlineMs) throw new Error(`${name} does not serve:\n${log()}`);
    }
    return {
      child,
      log,
      async kill() {
        child.process.kill("SIGKILL");
        running.delete(child);
        while (!ended()) await sleep(5);
      },
    };
  };
}
