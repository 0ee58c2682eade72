// One contender of bench/proxy.ts in a process of its own: `bare`, `proxy` or `gateway`. Tells where it listens, and how much
// processor time it has used when it is asked.
import { streamingProxyDefinition } from "#libs/chunk-codec.ts";
import { openEgress } from "#libs/egress.ts";
import { unimplemented } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import { createLogger } from "#libs/log.ts";
import { createClient } from "#libs/rpc-client.ts";
import { type RunningServer, startServer } from "#libs/rpc-server.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { InjectionLease } from "#proto/deputy/vault/v1/leases.ts";
import { buildGateway } from "../services/gateway/gateway.ts";
import { authenticator } from "../services/proxy/authenticate.ts";
import { leaseCache } from "../services/proxy/lease-cache.ts";
import { leaseHolds } from "../services/proxy/lease-holds.ts";
import { leaseRenewals } from "../services/proxy/lease-renewal-client.ts";
import { openLimitStore } from "../services/proxy/limit-store.ts";
import { type LimitRules, startLimits } from "../services/proxy/limits.ts";
import { proxyCallers, proxyService } from "../services/proxy/proxy-service.ts";
import { watchLeases } from "../services/proxy/watch-leases.ts";
import { bareForwarder } from "./bare-forwarder.ts";
import { readBenchTls, upstreamHost } from "./proxy-tls.ts";

/** What a contender is told. */
export interface ContenderOptions {
  readonly kind: "bare" | "proxy" | "gateway";
  readonly directory: string;
  readonly upstreamPort: number;
  readonly accountPort: number;
  readonly vaultPort: number;
  readonly proxyPort: number;
}

const options = JSON.parse(process.argv[2] ?? "{}") as ContenderOptions;
const { kind, directory } = options;
const target = `${upstreamHost}:${options.upstreamPort}`;
const loopback = "127.0.0.1:0";
// All are counted, and none is met.
const limits: LimitRules = {
  windowMs: 300_000,
  projectRequests: 1e9,
  requestsOfProjects: new Map(),
  accountRequests: 1e9,
  projectInFlight: 1e6,
  accountInFlight: 1e6,
};

const ports = { bare: startBare, proxy: startProxy, gateway: startGateway };
process.send?.(await ports[kind]());
process.on("message", () => process.send?.(process.cpuUsage()));
process.on("disconnect", () => process.exit());

function portsOf({ plaintextPort, internalPort }: RunningServer) {
  return { port: plaintextPort, tlsPort: internalPort };
}

async function startBare() {
  const tls = readBenchTls(directory, "proxy");
  const anybody = [{}, { service: "gateway" }];
  const closed = () => {
    throw unimplemented("bare");
  };
  return portsOf(
    await startServer({
      definition: ProxyServiceDefinition,
      handlers: {
        forward: bareForwarder(`https://127.0.0.1:${options.upstreamPort}`, tls.ca),
        forwardStream: closed,
        explainForward: closed,
      },
      callers: { forward: anybody, forwardStream: [], explainForward: [] },
      authenticate: async (token) => ({
        identity: { subject: "", projectId: "proj_bench", scopes: [], expireMs: Number.POSITIVE_INFINITY },
        token,
      }),
      unvalidated: ["forward"],
      internalAddress: loopback,
      plaintextAddress: loopback,
      tls,
      reflection: false,
      log: createLogger("bare", "silent"),
    }),
  );
}

async function startProxy() {
  const tls = readBenchTls(directory, "proxy");
  const log = createLogger(kind, "info");
  const at = (port: number) => `127.0.0.1:${port}`;
  const account = createClient(AccountServiceDefinition, { address: at(options.accountPort), tls, service: "account" });
  const vault = createClient(CredentialVaultDefinition, { address: at(options.vaultPort), tls, service: "vault" });
  const proxyId = newId("prx");
  const holds = leaseHolds<InjectionLease>({ monotonicMs: () => performance.now(), wallMs: Date.now });
  const server = await startServer({
    definition: streamingProxyDefinition,
    handlers: proxyService({
      account,
      vault,
      catalog: new Map(),
      leases: { cache: leaseCache(holds, Date.now), proxyId, renew: leaseRenewals(vault, proxyId) },
      egress: openEgress({ resolve: async () => ["127.0.0.1"], exemptTargets: [target], extraCa: tls.ca }),
      limits: startLimits(limits, await openLimitStore({ url: "", password: "", log }), Date.now),
      exemptTargets: [target],
      now: Date.now,
    }),
    callers: proxyCallers,
    authenticate: authenticator(account, Date.now),
    unvalidated: ["forward", "forwardStream"],
    internalAddress: loopback,
    plaintextAddress: loopback,
    tls,
    reflection: false,
    log,
  });
  await new Promise<void>((resolve) => {
    watchLeases({ vault, proxyId, holds, log, onChange: (watching) => watching && resolve() });
  });
  return portsOf(server);
}

async function startGateway() {
  const tls = readBenchTls(directory, "gateway");
  const proxy = createClient(ProxyServiceDefinition, {
    address: `127.0.0.1:${options.proxyPort}`,
    tls,
    service: "proxy",
  });
  const account = createClient(AccountServiceDefinition, {
    address: `127.0.0.1:${options.accountPort}`,
    tls,
    service: "account",
  });
  const app = buildGateway({
    account,
    proxy,
    health: {},
    gatewayUrl: "http://127.0.0.1",
    log: createLogger(kind, "info"),
  });
  const url = await app.listen({ host: "127.0.0.1", port: 0 });
  return { port: Number(new URL(url).port), tlsPort: 0 };
}
