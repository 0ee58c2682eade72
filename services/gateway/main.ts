// The gateway process: settings, clients, HTTP server.

import { readConfig } from "#libs/config.ts";
import { createLogger } from "#libs/log.ts";
import { dieLoudly, stopInOrder } from "#libs/process.ts";
import { createClient } from "#libs/rpc-client.ts";
import { accountAddress, gatewayUrl, serviceSettings, tlsIdentity } from "#libs/service-settings.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { buildGateway } from "./gateway.ts";
import { HealthDefinition } from "./health.ts";

const config = readConfig({
  ...serviceSettings,
  DEPUTY_GATEWAY_ADDRESS: { kind: "address", default: "127.0.0.1:7400", help: "Where HTTP clients call." },
  ...gatewayUrl,
  ...accountAddress,
  DEPUTY_PROXY_ADDRESS: { kind: "address", default: "127.0.0.1:7403", help: "Where the proxy is." },
});

const log = createLogger("gateway", config.DEPUTY_LOG_LEVEL);
dieLoudly(log);

const tls = tlsIdentity(config);
const atAccount = { address: config.DEPUTY_ACCOUNT_ADDRESS, tls, service: "account" };
const atProxy = { address: config.DEPUTY_PROXY_ADDRESS, tls, service: "proxy" };
const account = createClient(AccountServiceDefinition, atAccount);
const proxy = createClient(ProxyServiceDefinition, atProxy);
const health = { account: createClient(HealthDefinition, atAccount), proxy: createClient(HealthDefinition, atProxy) };

const app = buildGateway({ account, proxy, health, gatewayUrl: config.DEPUTY_GATEWAY_URL, log });
const [, host = "", port = ""] = /^(.*):(\d+)$/.exec(config.DEPUTY_GATEWAY_ADDRESS) ?? [];
await app.listen({ host: host.replace(/^\[(.*)\]$/, "$1"), port: Number(port) });
log.info({ address: config.DEPUTY_GATEWAY_ADDRESS }, "serving");

stopInOrder(
  log,
  (timeoutMs) => {
    const timer = setTimeout(() => app.server.closeAllConnections(), timeoutMs);
    return app.close().finally(() => clearTimeout(timer));
  },
  () => account.close(),
  () => proxy.close(),
  () => health.account.close(),
  () => health.proxy.close(),
);
