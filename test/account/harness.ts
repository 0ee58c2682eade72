// The true account service on a database of its own, with clients for each kind of caller. Its vault is a server that
// records what it is told and fails on demand; true-vault.test.ts runs against the real one.
import { generateKeyPairSync } from "node:crypto";
import { afterAll } from "vitest";
import { type CatalogApp, loadCatalog } from "#libs/catalog.ts";
import { type Connection, openConnection, openDatabase } from "#libs/database.ts";
import { listenForSignals } from "#libs/database-signals.ts";
import { digest } from "#libs/ids.ts";
import { createLogger } from "#libs/log.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import { type ClientOptions, createClient } from "#libs/rpc-client.ts";
import { startServer } from "#libs/rpc-server.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { accountService } from "../../services/account/account-service.ts";
import { authenticator } from "../../services/account/authenticate.ts";
import { callers } from "../../services/account/callers.ts";
import type { Tables } from "../../services/account/schema.ts";
import { loadTokenKeys } from "../../services/account/token-keys.ts";
import { createTestDatabase } from "../support/postgres.ts";
import { testTls } from "../support/tls.ts";
import { startRecordingVault } from "./recording-vault.ts";

/** The value that a test's browser is bound by. */
export const binding = "the-browser-that-started-the-connection";
export const development = 1;
export const production = 2;

/** Deadline and, where given, a bearer token. */
export function call(token?: string): CallOptions {
  return { deadlineMs: Date.now() + 20_000, ...(token !== undefined && { token }) };
}

/** The app whose base URL is a template over one of its fields. */
const tenantApp = "tenant_key";

/** A private key to sign access tokens with, PEM. */
export function newTokenKey(): string {
  return generateKeyPairSync("ed25519").privateKey.export({ format: "pem", type: "pkcs8" }).toString();
}

/** Starts the service; what it needs ends after the file's last test. Call it at the top level of a file. */
export async function startAccount(
  vaultAddress?: string,
  moreApps: readonly CatalogApp[] = [],
  { developmentUsers = 0, exemptTargets = [] }: { developmentUsers?: number; exemptTargets?: readonly string[] } = {},
) {
  const database = await createTestDatabase("account");
  const lines: string[] = [];
  const log = createLogger("account", "debug", { write: (line) => lines.push(line) });
  const db = openDatabase<Tables>({
    ...database.runtime,
    applicationName: "account-test",
    statementTimeoutMs: 10_000,
    maxConnections: 5,
  });
  const owner = await openConnection({
    ...database.owner,
    applicationName: "account-test",
    statementTimeoutMs: 10_000,
  });
  const signals = listenForSignals({
    database: { ...database.runtime, applicationName: "account-test", statementTimeoutMs: 10_000 },
    channels: ["account_changes"],
    log,
  });
  const vault = await startRecordingVault();
  const catalog = new Map(loadCatalog("catalog", { production: false }));
  const keyApp = catalog.get("sandbox_header_key");
  if (keyApp === undefined) throw new Error("the catalog has changed");
  catalog.set(tenantApp, {
    ...keyApp,
    slug: tenantApp,
    name: "Tenant",
    development: false,
    featured_weight: 5,
    categories: ["CRM"],
    custom_fields: [
      ...keyApp.custom_fields,
      { name: "tenant", label: "Tenant", description: "", default: "acme", optional: false, secret: false },
    ],
    proxy: { ...keyApp.proxy, base_url: "https://{{custom_fields.tenant}}.example.com" },
  });
  for (const app of moreApps) catalog.set(app.slug, app);
  const tokenKey = newTokenKey();
  const tokenKeys = await loadTokenKeys(tokenKey);
  const clock = { aheadMs: 0 };
  const now = () => Date.now() + clock.aheadMs;
  const vaultClient = createClient(CredentialVaultDefinition, {
    address: vaultAddress ?? vault.address,
    tls: await testTls("account"),
    service: "vault",
  });
  const serve = async () =>
    startServer({
      definition: AccountServiceDefinition,
      handlers: accountService(
        { db, vault: vaultClient, catalog, tokenKeys, signals },
        { gatewayUrl: "https://deputy.example:8443", developmentUsers, exemptTargets },
        now,
      ),
      callers,
      authenticate: authenticator({ db, tokenKeys }, now),
      internalAddress: "127.0.0.1:0",
      publicAddress: "127.0.0.1:0",
      tls: await testTls("account"),
      reflection: false,
      log,
    });
  const server = await serve();
  const clients: { close(): void }[] = [vaultClient];
  const connect = (tls: ClientOptions["tls"], port: number) => {
    const client = createClient(AccountServiceDefinition, { address: `127.0.0.1:${port}`, tls, service: "account" });
    clients.push(client);
    return client;
  };
  const operator = connect(await testTls("operator"), server.internalPort);
  const gateway = connect(await testTls("gateway"), server.internalPort);
  const proxy = connect(await testTls("proxy"), server.internalPort);
  const { ca, trustDomain } = await testTls("operator");
  /** The public address, without a certificate. */
  const api = connect({ ca, trustDomain }, server.publicPort);
  afterAll(async () => {
    for (const client of clients) client.close();
    await signals.stop();
    await server.drain(1_000);
    await vault.stop();
    await db.destroy();
    await owner.end();
  });
  const asSuperuser = async <Answer>(work: (admin: Connection) => Promise<Answer>): Promise<Answer> => {
    const admin = await openConnection({ ...database.superuser, applicationName: "test", statementTimeoutMs: 10_000 });
    return work(admin).finally(() => admin.end());
  };
  /** One more process on the same database, for proxies. */
  const startSecond = async () => {
    const second = await serve();
    afterAll(() => second.drain(1_000));
    return connect(await testTls("proxy"), second.internalPort);
  };
  return {
    ...{ operator, gateway, proxy, api, vault, vaultClient, db, owner, clock, lines, tokenKeys, tokenKey, database },
    ...{ signals, server, startSecond, access: database.runtime, asSuperuser, catalog, now, log },
  };
}

export type Account = Awaited<ReturnType<typeof startAccount>>;

/** A project with an API client, its access token, and an OAuth app for the sandbox. */
export async function newProject({ operator, api }: Account, scopes: string[] = []) {
  const { project } = await operator.createProject(
    { name: "Acme", appName: "Acme CRM", supportEmail: "help@acme.test" },
    call(),
  );
  const projectId = project?.id ?? "";
  const { apiClient, clientSecret } = await operator.createApiClient({ projectId, scopes }, call());
  const clientId = apiClient?.id ?? "";
  const token = await issue(api, clientId, clientSecret);
  return { projectId, clientId, clientSecret, token };
}

export async function issue(
  api: Client<typeof AccountServiceDefinition>,
  clientId: string,
  clientSecret: string,
): Promise<string> {
  const grant = { $case: "clientCredentials", value: { clientId, clientSecret } } as const;
  return (await api.issueAccessToken({ grant }, call())).accessToken;
}

/** An access token of a caller who acts for a member. */
export async function memberToken(
  { tokenKeys, clock }: Account,
  projectId: string,
  memberId: string,
  { role = "member", scope = "connect:*" } = {},
): Promise<string> {
  const nowMs = Date.now() + clock.aheadMs;
  const claims = { sub: "cli_members", project_id: projectId, scope, actor: { member_id: memberId, role } };
  return (await tokenKeys.sign(claims, nowMs, nowMs + 3_600_000)).token;
}

/** An OAuth app for the sandbox. */
export async function newOauthApp({ operator }: Account, projectId: string): Promise<string> {
  const request = { projectId, appSlug: "sandbox", clientId: "acme-client", clientSecret: "acme-secret" };
  return (await operator.createOauthApp(request, call())).oauthApp?.id ?? "";
}

/** A connect token of a user. */
export async function newConnectToken(
  { api }: Account,
  token: string,
  more: Parameters<Client<typeof AccountServiceDefinition>["createConnectToken"]>[0] = {},
): Promise<string> {
  const request = { environment: development, externalUserId: "ann", ...more } as const;
  return (await api.createConnectToken(request, call(token))).token;
}

/** The credential of an account of the app with a key. */
export const keyFields = { $case: "fields", value: { values: { api_key: "sandbox-key-0123" } } } as const;

/** An account with a key. */
export async function newKeyAccount({ api }: Account, token: string, externalUserId = "ann") {
  const request = {
    environment: development,
    externalUserId,
    appSlug: "sandbox_header_key",
    credential: keyFields,
  } as const;
  const { account } = await api.createAccount(request, call(token));
  if (account === undefined) throw new Error("no account");
  return account;
}

/** Fills the table directly: many accounts at once, all connected in the same millisecond. */
export async function insertAccounts({ db }: Account, projectId: string, count: number, externalUserId = "ann") {
  const time = new Date();
  const rows = Array.from({ length: count }, (_, n) => ({
    projectId,
    id: `apn_${digest(`${projectId} ${n}`).toString("hex").slice(0, 22)}`,
    environment: development as 1,
    externalUserId,
    appSlug: n % 2 === 0 ? "sandbox_header_key" : "sandbox_query_key",
    oauthAppId: n % 5 === 0 ? "oa_five" : "",
    name: "",
    state: "ACTIVE" as const,
    health: "HEALTHY" as const,
    error: "",
    authorizedScopes: [],
    createTime: time,
    updateTime: time,
  }));
  await db.insertInto("accounts").values(rows).execute();
  return rows.map(({ id }) => id);
}

export async function collect<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  return Array.fromAsync(items);
}
