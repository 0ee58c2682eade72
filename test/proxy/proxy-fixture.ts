// A proxy as its process runs it, between stand-ins for the account service and the vault and a raw TLS upstream.

import { type Catalog, getApp, loadCatalog } from "#libs/catalog.ts";
import { streamingProxyDefinition } from "#libs/chunk-codec.ts";
import { openEgress } from "#libs/egress.ts";
import { notFound, StatusError } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";
import type { Call, Client } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import type { RunningServer } from "#libs/rpc-server.ts";
import { startServer } from "#libs/rpc-server.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Account, AccountState } from "#proto/deputy/account/v1/accounts.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import type { ForwardRequest, ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { RefreshCredentialResponse } from "#proto/deputy/vault/v1/credentials.ts";
import { InjectionLease, type LeaseRenewal } from "#proto/deputy/vault/v1/leases.ts";
import { authenticator } from "../../services/proxy/authenticate.ts";
import { leaseCache } from "../../services/proxy/lease-cache.ts";
import { type LeaseHolds, leaseHolds } from "../../services/proxy/lease-holds.ts";
import { leaseRenewals } from "../../services/proxy/lease-renewal-client.ts";
import { openLimitStore } from "../../services/proxy/limit-store.ts";
import { type LimitRules, startLimits } from "../../services/proxy/limits.ts";
import { proxyCallers, proxyService } from "../../services/proxy/proxy-service.ts";
import { watchLeases } from "../../services/proxy/watch-leases.ts";
import { signToken, startStandIn, tokenKeys } from "../support/stand-in-service.ts";

import { testTls } from "../support/tls.ts";
import { startTlsUpstream, type TlsUpstream, upstreamHost } from "../support/tls-upstream.ts";
import { newStandInWatch, type StandInWatch, standInWatch } from "./stand-in-watch.ts";

export const connectToken = `ctok_${"0".repeat(32)}`;
export const accessSecret = "ya29.the-access-token";
const claims = { sub: "cli_1", project_id: "proj_1", scope: "*" };
export const userClaims = {
  sub: "cct_1",
  project_id: "proj_1",
  scope: "connect:*",
  environment: 1,
  external_user_id: "user-1",
};

/** What the neighbours say where it differs from the usual. */
export interface Answers {
  readonly account: Partial<Account>;
  readonly lease: Partial<InjectionLease>;
  readonly vaultFault?: StatusError;
  /** Makes the next generation, or says why not. */
  readonly refresh?: (generation: bigint) => Promise<RefreshCredentialResponse>;
}

export interface ProxyFixture {
  readonly upstream: TlsUpstream;
  readonly proxy: RunningServer;
  /** What the vault and the account service were asked, and with which right. */
  readonly leases: { readonly accountId: string; readonly proxyId: string; readonly call: Call }[];
  /** What each call of RenewLeases asked for. */
  readonly renewals: LeaseRenewal[][];
  readonly accountReads: string[];
  readonly exchanges: string[];
  /** The generations whose refresh the proxy has asked for; what the vault answers is `answers.refresh`. */
  readonly refreshes: { readonly generation: bigint; readonly externalUserId: string; readonly token: string }[];
  /** The settings of a proxy process between the same neighbours, beside its addresses and certificates. */
  readonly settings: Readonly<Record<string, string>>;
  /** The vault's side of WatchLeases. */
  readonly watch: StandInWatch;
  readonly holds: LeaseHolds<InjectionLease>;
  /** What the proxy has said of itself through its health check. */
  readonly serving: boolean[];
  /** Changes what the neighbours answer; `reset` undoes it. */
  answers: Answers;
  readonly gateway: Client<typeof ProxyServiceDefinition>;
  readonly token: string;
  reset(): void;
  stop(): Promise<void>;
}

export function forwardRequest(change: Partial<ForwardRequest> = {}): Partial<ForwardRequest> {
  return {
    projectId: "proj_1",
    environment: Environment.DEVELOPMENT,
    externalUserId: "user-1",
    accountId: "apn_1",
    method: "GET",
    url: "/things?a=1",
    ...change,
  };
}

/** What the vault leases. */
export function standInLease(port: number, change: Partial<InjectionLease> = {}): InjectionLease {
  return InjectionLease.fromPartial({
    appSlug: "acme",
    proxyEnabled: true,
    headers: [{ name: "Authorization", value: `Bearer ${accessSecret}` }],
    baseUrl: `https://${upstreamHost}:${port}/v1`,
    allowedDomains: [upstreamHost],
    absoluteUrlsAllowed: true,
    leaseDurationMs: 10_000,
    ...change,
  });
}

export function ok(body: string, head = "content-type: application/json\r\n"): string {
  return `HTTP/1.1 200 OK\r\n${head}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}

/** An app with a key, whose API is the upstream. */
function catalogAt(port: number): Catalog {
  const app = getApp(loadCatalog("catalog", { production: false }), "sandbox_header_key");
  const base_url = `https://${upstreamHost}:${port}/v1`;
  const proxy = { ...app.proxy, base_url, allowed_domains: [upstreamHost], allowed_ports: [port] };
  return new Map([["acme", { ...app, slug: "acme", proxy }]]);
}

/** Limits that no test meets by accident. */
const generousLimits: LimitRules = {
  windowMs: 300_000,
  projectRequests: 1_000_000,
  requestsOfProjects: new Map(),
  accountRequests: 0,
  projectInFlight: 10_000,
  accountInFlight: 10_000,
};

const proxyId = "prx_1";

/** Starts all of them. */
export async function startProxyFixture(limits: Partial<LimitRules> = {}): Promise<ProxyFixture> {
  const log = createLogger("proxy", "silent");
  const limitRules = { ...generousLimits, ...limits };
  const upstream = await startTlsUpstream();
  const target = `${upstreamHost}:${upstream.port}`;
  const leases: ProxyFixture["leases"] = [];
  const renewals: LeaseRenewal[][] = [];
  const accountReads: string[] = [];
  const exchanges: string[] = [];
  const refreshes: ProxyFixture["refreshes"] = [];
  let answers: Answers = { account: {}, lease: {} };
  const watch = newStandInWatch();
  const viaProxy = [{ service: "proxy", scope: "connect:proxy", connectToken: true }];

  const account = await startStandIn({
    definition: AccountServiceDefinition,
    service: "account",
    callers: { getAccount: viaProxy, getTokenKeys: [{ service: "proxy" }], issueAccessToken: [{ service: "proxy" }] },
    handlers: {
      getAccount: async ({ accountId, externalUserId }) => {
        accountReads.push(accountId);
        if (accountId !== "apn_1" || externalUserId !== "user-1") throw notFound("account");
        return { account: Account.fromPartial({ id: accountId, state: AccountState.ACTIVE, ...answers.account }) };
      },
      getTokenKeys: async () => ({ keys: [...(await tokenKeys())] }),
      issueAccessToken: async ({ grant }) => {
        exchanges.push(String(grant?.value));
        if (grant?.value !== connectToken) throw new StatusError("UNAUTHENTICATED", "TOKEN_INVALID", "Not valid.");
        const expireTime = new Date(Date.now() + 60_000);
        return { accessToken: await signToken(userClaims, 60), expireTime, scope: userClaims.scope };
      },
    },
  });
  const vault = await startStandIn({
    definition: CredentialVaultDefinition,
    service: "vault",
    callers: {
      ...{ leaseInjection: viaProxy, refreshCredential: viaProxy },
      ...{ renewLeases: [{ service: "proxy" }], watchLeases: [{ service: "proxy" }] },
    },
    handlers: {
      refreshCredential: async ({ generation, externalUserId }, { token = "" }) => {
        refreshes.push({ generation, externalUserId, token });
        if (answers.refresh === undefined)
          throw new StatusError("FAILED_PRECONDITION", "NEEDS_REAUTH", "Connect again.");
        return answers.refresh(generation);
      },
      watchLeases: (requests) => standInWatch(watch, requests),
      renewLeases: async ({ renewals: asked }) => {
        renewals.push(asked);
        if (answers.vaultFault !== undefined) throw answers.vaultFault;
        const lease = standInLease(upstream.port, answers.lease);
        return { results: asked.map(({ accountId }) => ({ lease: accountId === "apn_1" ? lease : undefined })) };
      },
      leaseInjection: async ({ accountId, proxyId }, call) => {
        leases.push({ accountId, proxyId, call });
        await watch.leasing;
        if (answers.vaultFault !== undefined) throw answers.vaultFault;
        if (accountId !== "apn_1") throw notFound("credential");
        return { lease: standInLease(upstream.port, answers.lease) };
      },
    },
  });

  const tls = await testTls("proxy");
  const holds = leaseHolds<InjectionLease>({ monotonicMs: () => performance.now(), wallMs: Date.now });
  // What the vault does when an account's fields or app change.
  const forgetLease = () => holds.invalidate({ projectId: "proj_1", accountId: "apn_1" }, { kind: "over" });
  const serving: boolean[] = [];
  const accountClient = createClient(AccountServiceDefinition, {
    address: `127.0.0.1:${account.internalPort}`,
    tls,
    service: "account",
  });
  const vaultClient = createClient(CredentialVaultDefinition, {
    address: `127.0.0.1:${vault.internalPort}`,
    tls,
    service: "vault",
  });
  const egress = openEgress({
    resolve: async () => {
      await watch.connecting;
      return ["127.0.0.1"];
    },
    exemptTargets: [target],
    extraCa: upstream.ca,
    // On a busy machine a hundred handshakes at once take their time.
    connectTimeoutMs: 20_000,
  });
  const proxy = await startServer({
    definition: streamingProxyDefinition,
    handlers: proxyService({
      account: accountClient,
      vault: vaultClient,
      catalog: catalogAt(upstream.port),
      leases: { cache: leaseCache(holds, Date.now), proxyId, renew: leaseRenewals(vaultClient, proxyId) },
      egress,
      limits: startLimits(limitRules, await openLimitStore({ url: "", password: "", log }), Date.now),
      exemptTargets: [target],
      now: Date.now,
    }),
    callers: proxyCallers,
    authenticate: authenticator(accountClient, Date.now),
    unvalidated: ["forward", "forwardStream"],
    internalAddress: "127.0.0.1:0",
    publicAddress: "127.0.0.1:0",
    tls,
    reflection: false,
    log,
  });
  const leaseWatch = watchLeases({
    vault: vaultClient,
    proxyId,
    holds,
    log,
    onChange: (watching) => serving.push(watching),
  });
  const gateway = createClient(streamingProxyDefinition, {
    address: `127.0.0.1:${proxy.internalPort}`,
    tls: await testTls("gateway"),
    service: "proxy",
  });
  return {
    upstream,
    proxy,
    leases,
    renewals,
    accountReads,
    exchanges,
    refreshes,
    settings: {
      DEPUTY_ACCOUNT_ADDRESS: `127.0.0.1:${account.internalPort}`,
      DEPUTY_VAULT_ADDRESS: `127.0.0.1:${vault.internalPort}`,
      DEPUTY_EGRESS_TEST_ALLOW: `localhost:${upstream.port}`,
    },
    watch,
    holds,
    serving,
    get answers() {
      return answers;
    },
    set answers(next) {
      answers = next;
      forgetLease();
    },
    gateway,
    token: await signToken(claims),
    reset() {
      answers = { account: {}, lease: {} };
      forgetLease();
      leases.length = 0;
      renewals.length = 0;
      accountReads.length = 0;
      exchanges.length = 0;
      refreshes.length = 0;
      watch.heard.length = 0;
      watch.leasing = undefined;
      watch.connecting = undefined;
      upstream.requests.length = 0;
      upstream.answerWith(ok("{}"));
    },
    async stop() {
      gateway.close();
      await proxy.drain(1000);
      await leaseWatch.stop();
      await egress.close();
      accountClient.close();
      vaultClient.close();
      await Promise.all([account.drain(1000), vault.drain(1000), upstream.close()]);
    },
  };
}
