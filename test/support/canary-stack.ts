// A stack for the search for leaked secrets: everything logs at level debug, whatever the vault and the proxy send goes through
// a shim that can misbehave, every secret of the run is collected, and so is what clients are told when something fails.
import { createPrivateKey } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";
import { afterAll, beforeEach } from "vitest";
import type { Connection } from "#libs/database.ts";
import { createClient } from "#libs/rpc-client.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { Child } from "../../dev/child.ts";
import { walkConnectPage } from "../../dev/connect-page.ts";
import { readSecret, trustDomain } from "../../dev/state.ts";
import { fileKeyring, readKeyringDocument } from "../../services/vault/keyring.ts";
import type { Place } from "./places.ts";
import { startProviderShim } from "./provider-shim.ts";
import { connectSandbox, openStackDatabase, startAnother, startTestStack } from "./stack.ts";

// A key may have any letters that can be seen: those that encodings change are in it.
export const apiKey = 'sandbox-key-canary-"%+/\\=&<7f3a9c>';

/** Starts it at the top level of a test file. */
export async function startCanaryStack() {
  const stack = await startTestStack({ logLevel: "debug" });
  const { state, connection, account, ca, call, ports } = stack;
  const project = { projectId: connection.project_id, environment: Environment.DEVELOPMENT };
  const secrets: Record<string, string | Buffer> = { "API key": apiKey };
  const told: Place[] = [];
  const shim = await startProviderShim(`https://localhost:${ports.sandbox}`, tlsFilesOf("sandbox"));
  beforeEach(() => shim.misbehave(() => undefined));
  putShimBeforeSandbox();
  const running: { vault: Child; proxy: Child } = { vault: stack.children.vault, proxy: stack.children.proxy };
  let starts = 0;
  // The proxy first, so that it can take its leave of the vault: nobody then waits for it.
  await restart("proxy");
  await restart("vault");
  const db = await openStackDatabase(stack, "deputy_vault");
  const vault = createClient(CredentialVaultDefinition, {
    address: `127.0.0.1:${ports.vault}`,
    tls: { ...tlsFilesOf("account"), trustDomain },
    service: "vault",
  });
  afterAll(async () => {
    vault.close();
    await db.end();
    await shim.stop();
  });

  function tlsFilesOf(service: string) {
    const { certificateFile = "", keyFile = "" } = state.certificates.services[service] ?? {};
    return { ca, certificate: readFileSync(certificateFile, "utf8"), key: readFileSync(keyFile, "utf8") };
  }

  /** In the catalog of the vaults that start from now on. People are still sent to the provider itself. */
  function putShimBeforeSandbox(): void {
    const shimPort = new URL(shim.url).port;
    for (const name of readdirSync(state.catalog)) {
      const file = join(state.catalog, name);
      const text = readFileSync(file, "utf8")
        .replaceAll(/^( +(?:url|base_url): .*):\d+(\/(?!auth$).*)$/gm, `$1:${shimPort}$2`)
        .replace(/allowed_ports: .*/, `allowed_ports: [${shimPort}]`);
      writeFileSync(file, text);
    }
  }

  /** Puts another process in the place of the one at work. */
  async function restart(name: "vault" | "proxy", settings: Readonly<Record<string, string>> = {}): Promise<void> {
    await running[name].stop();
    starts += 1;
    running[name] = await startAnother(stack, name, {
      name: `${name}-${starts}`,
      settings: { DEPUTY_EGRESS_TEST_ALLOW: `localhost:${ports.sandbox},${shim.address}`, ...settings },
    });
  }

  /** Notes a secret of the run, and gives it. */
  function secret(name: string, value: string): string {
    secrets[name] = value;
    return value;
  }

  /** What a client is told by an answer. */
  async function keepAnswer(what: string, answer: Response): Promise<Response> {
    told.push([what, show([answer.status, [...answer.headers], await answer.text()])]);
    return answer;
  }

  const restHeaders = () => ({ authorization: `Bearer ${call().token}`, "x-pd-environment": connection.environment });

  /** Every token and code that went over the shim, and every secret that the services were given or made. */
  async function collectSecrets(): Promise<void> {
    const { token } = call();
    secret("signature of an access token", token.split(".")[2] ?? "");
    secret("API client secret", connection.client_secret);
    secret("superuser's password", stack.postgres.password);
    for (const [name, file] of Object.entries(state.passwordFiles)) secret(`password of ${name}`, readSecret(file));
    const sent = /(?:code|code_verifier|refresh_token|access_token|id_token|token)["=:\s]+([\w.%-]{16,})/g;
    for (const { asked, body } of shim.tokenAnswers) {
      for (const [, value = ""] of `${asked}\n${body}`.matchAll(sent))
        secret(`token ${value}`, decodeURIComponent(value));
    }
    for (const key of (await readKeyringDocument(state.keyringFile)).keys) {
      secrets[`KEK ${key.id}`] = Buffer.from(key.key, "base64");
    }
    const keys = Object.entries(state.certificates.services).map(([name, { keyFile }]) => [name, keyFile] as const);
    for (const [name, file] of [
      ...keys,
      ["tokens", state.tokenKeyFile],
      ["vault", state.vaultSigningKeyFile],
    ] as const) {
      const { d = "" } = createPrivateKey(readFileSync(file)).export({ format: "jwk" });
      secrets[`private key of ${name} ${file}`] = Buffer.from(d, "base64url");
    }
    const keyring = fileKeyring({ path: state.keyringFile });
    for (const row of await dataKeyRows(db)) {
      secrets[`data key ${row.dataKeyId}`] = (await keyring.unwrap(row, row)).export();
    }
  }

  async function createKeyAccount(appSlug: string): Promise<string> {
    const credential = { $case: "fields", value: { values: { api_key: apiKey } } } as const;
    const asked = { ...project, externalUserId: "keys", appSlug, credential };
    return (await account.createAccount(asked, call())).account?.id ?? "";
  }

  // The account service has lost its vault, and finds the other one in its own time.
  await until(() => createKeyAccount("sandbox_header_key").catch(() => undefined));

  return {
    ...{
      stack,
      project,
      shim,
      running,
      db,
      vault,
      secrets,
      told,
      restart,
      secret,
      keepAnswer,
      restHeaders,
    },
    collectSecrets,
    restUrl: `${connection.gateway_url}/v1/connect/${connection.project_id}`,
    /** Lets an access token end, unseen by the vault's loop. */
    async endToken(accountId: string): Promise<void> {
      const ended = "expire_time = now() - interval '1 second', next_refresh_time = null";
      await db.query(`update credentials set ${ended} where account_id = '${accountId}'`);
    },
    connect: (externalUserId: string) => until(() => connectSandbox(stack, externalUserId).catch(() => undefined)),
    /** Goes through the connect page, and keeps what it says in the end. */
    async openLink(externalUserId: string): Promise<void> {
      const asked = { ...project, externalUserId, appSlug: "sandbox" };
      const { connectLinkUrl, token } = await account.createConnectToken(asked, call());
      secret(`connect token of ${externalUserId}`, token);
      await keepAnswer(externalUserId, await walkConnectPage({ link: connectLinkUrl, name: "Canary", ca }));
    },
    createKeyAccount,
    forward: (externalUserId: string, accountId: string) =>
      stack.proxy.forward({ ...project, externalUserId, accountId, method: "GET", url: "/echo/x" }, call()),
  };
}

/** The error that a promise ends with, if it does. */
export function failureOf(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => undefined,
    (error: unknown) => error,
  );
}

/** All that can be seen of a value. */
export function show(value: unknown): string {
  return inspect(value, { depth: 20, showHidden: true, maxStringLength: null, maxArrayLength: null });
}

/** What the look gives once it gives something. */
export async function until<Value>(look: () => Promise<Value | undefined | false> | boolean): Promise<Value> {
  const giveUpMs = performance.now() + 15_000;
  while (performance.now() < giveUpMs) {
    const found = await look();
    if (found) return found as Value;
    await sleep(50);
  }
  throw new Error("did not come true in time");
}

interface DataKeyColumns {
  readonly accountId: string;
  readonly dataKeyId: string;
  readonly kekId: string;
  readonly wrappedDataKey: Buffer;
}

function dataKeyRows(db: Connection): Promise<readonly DataKeyColumns[]> {
  const columns = `data_key_id as "dataKeyId", kek_id as "kekId", wrapped_data_key as "wrappedDataKey"`;
  return db.query<DataKeyColumns>(
    `select account_id as "accountId", ${columns} from credentials where wrapped_data_key is not null
     union all select oauth_app_id, data_key_id, kek_id, wrapped_data_key from oauth_clients where wrapped_data_key is not null`,
  );
}
