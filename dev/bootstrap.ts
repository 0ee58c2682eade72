// What a fresh stack needs before anybody can call it: a project, an API client, and the project's OAuth client at the
// sandbox provider. Made once by the operator's certificate, kept in connection.json.
import { existsSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { StatusError } from "#libs/errors.ts";
import type { Client, TlsIdentity } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { Ports } from "./ports.ts";
import { writePrivateFile } from "./private-file.ts";
import { readSecret, type State, trustDomain } from "./state.ts";

/** `connection.json`: all that a client of the local stack has to know. Holds a secret: mode 0600. */
export interface ConnectionFile {
  readonly gateway_url: string;
  /** `host:port`: account and proxy for callers with a bearer token, vault for services with a certificate. */
  readonly grpc: { readonly account: string; readonly vault: string; readonly proxy: string };
  readonly ca_file: string;
  readonly project_id: string;
  readonly environment: "development";
  readonly client_id: string;
  readonly client_secret: string;
  readonly sandbox: { readonly app: string; readonly api_url: string };
}

type Credentials = Pick<ConnectionFile, "project_id" | "client_id" | "client_secret">;

/** The operator's identity in the local stack. */
export function operatorTls(state: State) {
  return serviceTls(state, "operator");
}

/** The identity of a service in the local stack. */
export function serviceTls({ certificates }: State, service: string): TlsIdentity & { readonly key: string } {
  const { certificateFile, keyFile } = certificates.services[service] ?? { certificateFile: "", keyFile: "" };
  const read = (file: string) => readFileSync(file, "utf8");
  return { ca: read(certificates.caFile), certificate: read(certificateFile), key: read(keyFile), trustDomain };
}

/** Gives the connection of an earlier start, or makes a new one; writes it down with the ports of today. */
export async function ensureConnection(state: State, ports: Ports): Promise<ConnectionFile> {
  const account = createClient(AccountServiceDefinition, {
    address: `127.0.0.1:${ports.account}`,
    tls: operatorTls(state),
    service: "account",
  });
  try {
    const credentials = (await findCredentials(state, account)) ?? (await createCredentials(state, account));
    const connection: ConnectionFile = {
      gateway_url: `http://127.0.0.1:${ports.gateway}`,
      grpc: {
        account: `127.0.0.1:${ports.accountPublic}`,
        vault: `127.0.0.1:${ports.vault}`,
        proxy: `127.0.0.1:${ports.proxyPublic}`,
      },
      ca_file: state.certificates.caFile,
      ...credentials,
      environment: "development",
      sandbox: { app: "sandbox", api_url: `https://localhost:${ports.sandbox}/api` },
    };
    await writePrivateFile(state.connectionFile, `${JSON.stringify(connection, undefined, 2)}\n`);
    await writePrivateFile(state.shellFile, shellVariables(connection));
    return connection;
  } finally {
    account.close();
  }
}

type AccountClient = Client<AccountServiceDefinition>;

const soon = () => ({ deadlineMs: Date.now() + 10_000 });

/** Those of the file, when the account service still knows them. */
async function findCredentials(state: State, account: AccountClient): Promise<Credentials | undefined> {
  if (!existsSync(state.connectionFile)) return undefined;
  const { project_id, client_id, client_secret } = await readConnection(state.connectionFile);
  const clientCredentials = { clientId: client_id, clientSecret: client_secret };
  try {
    await account.issueAccessToken({ grant: { $case: "clientCredentials", value: clientCredentials } }, soon());
    return { project_id, client_id, client_secret };
  } catch (error) {
    if (error instanceof StatusError && error.code === "UNAUTHENTICATED") return undefined;
    throw error;
  }
}

async function createCredentials(state: State, account: AccountClient): Promise<Credentials> {
  const { project } = await account.createProject({ name: "sandbox", appName: "My product" }, soon());
  const projectId = project?.id ?? "";
  const { apiClient, clientSecret } = await account.createApiClient({ projectId, name: "npm start" }, soon());
  const oauthClient = { clientId: "deputy", clientSecret: readSecret(state.passwordFiles["sandbox-client"]) };
  await account.createOauthApp({ projectId, appSlug: "sandbox", name: "npm start", ...oauthClient }, soon());
  return { project_id: projectId, client_id: apiClient?.id ?? "", client_secret: clientSecret };
}

/** The same for a shell, to be read by `source .deputy/env`. */
function shellVariables({ gateway_url, project_id, client_id, client_secret, grpc, ca_file }: ConnectionFile): string {
  const variables = {
    GATEWAY: gateway_url,
    PROJECT: project_id,
    CLIENT_ID: client_id,
    CLIENT_SECRET: client_secret,
    ACCOUNT_SERVICE: grpc.account,
    PROXY_SERVICE: grpc.proxy,
    CA_FILE: ca_file,
  };
  return Object.entries(variables)
    .map(([name, value]) => `${name}='${value.replaceAll("'", "'\\''")}'\n`)
    .join("");
}

/** Reads `connection.json`. Throws one sentence when it is not there. */
export async function readConnection(file: string): Promise<ConnectionFile> {
  const text = await readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") throw new Error(`${file} does not exist: run npm start first.`);
    throw new Error(`${file} cannot be read (${error.code}).`);
  });
  return JSON.parse(text) as ConnectionFile;
}
