// A gateway as its process runs it, in front of stand-ins for the account service and the proxy that note what they are asked.
import type { AddressInfo } from "node:net";
import { notFound, StatusError, unimplemented } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";
import type { Call, Handlers } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Account, AccountHealth, AccountState } from "#proto/deputy/account/v1/accounts.ts";
import { App, AuthType } from "#proto/deputy/account/v1/apps.ts";
import { ConnectionState, ValidateConnectTokenResponse } from "#proto/deputy/account/v1/connect.ts";
import { Project } from "#proto/deputy/account/v1/projects.ts";
import { ForwardResponse, ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { buildGateway } from "../../services/gateway/gateway.ts";
import { HealthDefinition } from "../../services/gateway/health.ts";
import { signToken, startStandIn } from "../support/stand-in-service.ts";
import { testTls } from "../support/tls.ts";

type AccountHandlers = Partial<Handlers<typeof AccountServiceDefinition>>;
type ProxyHandlers = Partial<Handlers<typeof ProxyServiceDefinition>>;

export const connectToken = `ctok_${"0".repeat(32)}`;
export const time = new Date("2026-11-21T12:00:00.000Z");

export const slack = App.fromPartial({
  id: "app_slack",
  slug: "slack",
  name: "Slack",
  authType: AuthType.OAUTH,
  imageUrl: "https://img.example/slack.png",
  categories: ["Chat"],
  proxy: { enabled: true, allowedDomains: ["slack.com"], baseUrl: "https://slack.com" },
});

export const sendgrid = App.fromPartial({
  id: "app_sendgrid",
  slug: "sendgrid",
  name: "SendGrid <x>",
  authType: AuthType.KEYS,
  customFields: [
    { name: "region", label: "Region", defaultValue: "eu" },
    { name: "api_key", label: "API key", description: "From the settings.", secret: true },
  ],
});

export const project = Project.fromPartial({
  id: "proj_1",
  name: "n",
  appName: "App",
  requireKeyAuthTest: true,
  createTime: time,
  updateTime: time,
});

export function accountOf(change: Partial<Account> = {}): Account {
  return Account.fromPartial({
    id: "apn_1",
    externalUserId: "user-1",
    appSlug: "slack",
    oauthAppId: "oa_1",
    name: "jane@example.com",
    state: AccountState.ACTIVE,
    health: AccountHealth.HEALTHY,
    authorizedScopes: ["read"],
    createTime: time,
    updateTime: time,
    ...change,
  });
}

export function validToken(change: Partial<ValidateConnectTokenResponse> = {}): ValidateConnectTokenResponse {
  return ValidateConnectTokenResponse.fromPartial({
    valid: true,
    app: slack,
    projectId: "proj_1",
    environment: 1,
    externalUserId: "user-1",
    projectAppName: "Acme & Co",
    ...change,
  });
}

const authorizationUrl = "https://provider.example/auth?state=the-state&code_challenge=x";

const connected = {
  id: "con_1",
  state: ConnectionState.SUCCEEDED,
  appSlug: "slack",
  externalUserId: "user-1",
  accountId: "apn_1",
  error: "",
  createTime: time,
  expireTime: time,
};
async function unanswered(): Promise<never> {
  throw unimplemented("This method");
}

const accountHandlers: AccountHandlers = {
  issueAccessToken: async ({ grant }) => {
    if (grant?.$case !== "clientCredentials" || grant.value.clientSecret !== "csecret") {
      throw new StatusError("UNAUTHENTICATED", "CLIENT_INVALID", "The client credentials are not valid.");
    }
    return { accessToken: "the-jwt", expireTime: new Date(Date.now() + 3_600_000), scope: "*" };
  },
  createConnectToken: async () => ({
    token: connectToken,
    expireTime: time,
    connectLinkUrl: "http://gateway/_static/connect.html?token=x&connectLink=true",
  }),
  validateConnectToken: async () => validToken(),
  getAccount: async ({ accountId }) => {
    if (accountId !== "apn_1") throw notFound("account");
    return { account: accountOf() };
  },
  listAccounts: async ({ pageToken }) =>
    pageToken === ""
      ? { accounts: [accountOf()], nextPageToken: "next", totalSize: 2 }
      : { accounts: [accountOf({ id: "apn_2", appSlug: "gone", oauthAppId: "" })], nextPageToken: "", totalSize: 2 },
  createAccount: async ({ appSlug }) => ({
    account: accountOf({ appSlug, oauthAppId: "" }),
    connectionId: "",
    verifier: "",
  }),
  deleteAccount: async () => ({ receipt: undefined }),
  deleteUser: async () => ({ receipts: [] }),
  revokeAllAccounts: async function* () {
    yield { receipt: undefined, totalSize: 1 };
  },
  getApp: async ({ appSlug }) => {
    const app = [slack, sendgrid].find(({ id, slug }) => id === appSlug || slug === appSlug);
    if (app === undefined) throw notFound("app");
    return { app };
  },
  createProject: async () => ({ project }),
  getProject: async ({ projectId }) => {
    if (projectId !== "proj_1") throw notFound("project");
    return { project };
  },
  listProjects: async () => ({ projects: [project], nextPageToken: "", totalSize: 1 }),
  updateProject: async ({ name = "" }) => ({ project: { ...project, name } }),
  deleteProject: async () => ({}),
  listProjectApps: async () => ({
    apps: [
      { appId: "app_slack", appSlug: "slack" },
      { appId: "", appSlug: "gone" },
    ],
  }),
  listUsers: async () => ({
    users: [{ id: "exu_1", externalUserId: "user-1", createTime: time, accountCount: 2 }],
    nextPageToken: "",
    totalSize: 1,
  }),
  listApps: async () => ({ apps: [slack, sendgrid], nextPageToken: "", totalSize: 2 }),
  // Each is a test's own to answer.
  createOauthApp: unanswered,
  getOauthApp: unanswered,
  listOauthApps: unanswered,
  updateOauthApp: unanswered,
  deleteOauthApp: unanswered,
  createAppOverride: unanswered,
  getAppOverride: unanswered,
  listAppOverrides: unanswered,
  updateAppOverride: unanswered,
  deleteAppOverride: unanswered,
  startConnection: async () => ({
    connectionId: "con_1",
    authorizationUrl,
    expireTime: new Date(Date.now() + 600_000),
  }),
  getConnection: async ({ connectionId }) => {
    if (connectionId !== "con_1") throw notFound("connection");
    return { connection: { ...connected, state: ConnectionState.PENDING, accountId: "" } };
  },
  verifyConnection: async () => ({ connection: connected }),
  completeConnection: async () => ({
    connection: connected,
    redirectUri: "",
    verifier: "",
    allowedOrigins: [],
  }),
};

const webhook = { id: "whk_1", url: "https://hooks.acme.com/deputy", createTime: time, updateTime: time };
const webhookHandlers: AccountHandlers = {
  getWebhook: async () => ({ webhook: undefined }),
  setWebhook: async ({ url }) => ({ webhook: { ...webhook, url }, signingKey: "whsec_new" }),
  rotateWebhookKey: async () => ({ webhook, signingKey: "whsec_next" }),
  deleteWebhook: async () => ({}),
};

const proxyHandlers: ProxyHandlers = {
  forward: async () =>
    ForwardResponse.fromPartial({
      status: 200,
      headers: [{ name: "content-type", value: "application/json" }],
      body: Buffer.from('{"ok":true}'),
      attempts: 1,
    }),
};

/** One call that a stand-in was asked. */
export interface Asked {
  readonly method: string;
  readonly request: Readonly<Record<string, unknown>>;
  readonly call: Call;
}

const server = (scope: string) => [{ service: "gateway", scope }];
const api = (scope: string) => [{ service: "gateway", scope, connectToken: true }];
const managing = [{ service: "gateway", scope: "connect:projects:write" }];
const callers = {
  issueAccessToken: [{ service: "gateway" }],
  validateConnectToken: [{ service: "gateway" }],
  completeConnection: [{ service: "gateway" }],
  createConnectToken: [{ service: "gateway", scope: "connect:tokens:create" }],
  getAccount: api("connect:accounts:read"),
  listAccounts: api("connect:accounts:read"),
  createAccount: api("connect:accounts:write"),
  deleteAccount: api("connect:accounts:write"),
  deleteUser: api("connect:users:write"),
  revokeAllAccounts: [{ service: "gateway", scope: "connect:accounts:write" }],
  createProject: server("connect:projects:write"),
  getProject: server("connect:projects:read"),
  listProjects: server("connect:projects:read"),
  updateProject: server("connect:projects:write"),
  deleteProject: server("connect:projects:write"),
  listProjectApps: api("connect:projects:read"),
  listUsers: server("connect:users:read"),
  getApp: api("connect:apps:read"),
  listApps: api("connect:apps:read"),
  startConnection: api("connect:accounts:write"),
  getConnection: api("connect:accounts:read"),
  verifyConnection: [{ service: "gateway", scope: "connect:accounts:write" }],
  getWebhook: [{ service: "gateway", scope: "connect:projects:read" }],
  setWebhook: [{ service: "gateway", scope: "connect:projects:write" }],
  rotateWebhookKey: [{ service: "gateway", scope: "connect:projects:write" }],
  deleteWebhook: [{ service: "gateway", scope: "connect:projects:write" }],
  createOauthApp: managing,
  getOauthApp: managing,
  listOauthApps: managing,
  updateOauthApp: managing,
  deleteOauthApp: managing,
  createAppOverride: managing,
  getAppOverride: managing,
  listAppOverrides: managing,
  updateAppOverride: managing,
  deleteAppOverride: managing,
};
const userClaims = {
  sub: "cct_1",
  project_id: "proj_1",
  scope: "connect:*",
  environment: 1,
  external_user_id: "user-1",
};

export async function startGatewayFixture(gatewayUrl = "http://127.0.0.1:7400") {
  const asked: Asked[] = [];
  const logged: string[] = [];
  let accountChange: AccountHandlers = {};
  let proxyChange: ProxyHandlers = {};

  /** Notes each call and answers with the handler that applies now. */
  function noting<H extends object>(base: H, change: () => Partial<H>): H {
    const entries = Object.keys(base).map((method) => [
      method,
      (request: Readonly<Record<string, unknown>>, call: Call) => {
        asked.push({ method, request, call });
        const handlers = { ...base, ...change() } as Record<string, (request: unknown, call: Call) => unknown>;
        return handlers[method]?.(request, call);
      },
    ]);
    return Object.fromEntries(entries) as H;
  }

  const account = await startStandIn({
    definition: AccountServiceDefinition,
    service: "account",
    callers,
    handlers: noting({ ...accountHandlers, ...webhookHandlers }, () => accountChange),
    connectTokens: { [connectToken]: userClaims },
  });
  const proxy = await startStandIn({
    definition: ProxyServiceDefinition,
    service: "proxy",
    callers: { forward: api("connect:proxy") },
    handlers: noting(proxyHandlers, () => proxyChange),
    connectTokens: { [connectToken]: userClaims },
  });

  const tls = await testTls("gateway");
  const atAccount = { address: `127.0.0.1:${account.internalPort}`, tls, service: "account" };
  const atProxy = { address: `127.0.0.1:${proxy.internalPort}`, tls, service: "proxy" };
  const accountClient = createClient(AccountServiceDefinition, atAccount);
  const proxyClient = createClient(ProxyServiceDefinition, atProxy);
  const health = { account: createClient(HealthDefinition, atAccount), proxy: createClient(HealthDefinition, atProxy) };
  // At the level of production, caught: tests look for what must not be in it.
  const log = createLogger("gateway", "info", { write: (line) => logged.push(line) });
  const app = buildGateway({ account: accountClient, proxy: proxyClient, health, gatewayUrl, log });
  await app.listen({ host: "127.0.0.1", port: 0 });
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
  const token = await signToken({ sub: "cli_1", project_id: "proj_1", scope: "*" });

  return {
    url,
    token,
    asked,
    logged,
    accountServer: account,
    proxyServer: proxy,
    changeAccount(change: AccountHandlers) {
      accountChange = change;
    },
    changeProxy(change: ProxyHandlers) {
      proxyChange = change;
    },
    /** One request with the access token; a redirect is not followed. */
    send(path: string, init: RequestInit & { headers?: Record<string, string> } = {}): Promise<Response> {
      const headers = { authorization: `Bearer ${token}`, "x-pd-environment": "development", ...init.headers };
      return fetch(`${url}${path}`, { redirect: "manual", ...init, headers });
    },
    /** One request with the headers given and no others. */
    sendBare(path: string, init: RequestInit = {}): Promise<Response> {
      return fetch(`${url}${path}`, { redirect: "manual", ...init });
    },
    reset() {
      accountChange = {};
      proxyChange = {};
      asked.length = 0;
      logged.length = 0;
    },
    async stop() {
      app.server.closeAllConnections();
      await app.close();
      for (const client of [accountClient, proxyClient, health.account, health.proxy]) client.close();
      await Promise.all([account.drain(500), proxy.drain(500)]);
    },
  };
}

export type GatewayFixture = Awaited<ReturnType<typeof startGatewayFixture>>;

/** JSON in a POST. */
export function json(body: unknown): { method: string; body: string; headers: Record<string, string> } {
  return { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
}
