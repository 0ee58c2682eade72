// The proxy process: settings, clients, egress, service.

import { loadCatalog } from "#libs/catalog.ts";
import { streamingProxyDefinition } from "#libs/chunk-codec.ts";
import { readConfig } from "#libs/config.ts";
import { openEgress } from "#libs/egress.ts";
import { newId } from "#libs/ids.ts";
import { createLogger } from "#libs/log.ts";
import { dieLoudly, stopInOrder } from "#libs/process.ts";
import { createClient } from "#libs/rpc-client.ts";
import { startServer } from "#libs/rpc-server.ts";
import {
  accountAddress,
  catalogDirectory,
  egressOptions,
  egressSettings,
  serviceSettings,
  tlsIdentity,
  vaultAddress,
} from "#libs/service-settings.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { InjectionLease } from "#proto/deputy/vault/v1/leases.ts";
import { authenticator } from "./authenticate.ts";
import { leaseCache } from "./lease-cache.ts";
import { leaseHolds } from "./lease-holds.ts";
import { leaseRenewals } from "./lease-renewal-client.ts";
import { limitRules, limitSettings } from "./limit-settings.ts";
import { openLimitStore } from "./limit-store.ts";
import { startLimits } from "./limits.ts";
import { proxyCallers, proxyService } from "./proxy-service.ts";
import { watchLeases } from "./watch-leases.ts";

const config = readConfig({
  ...serviceSettings,
  ...egressSettings,
  DEPUTY_PROXY_INTERNAL_ADDRESS: { kind: "address", default: "127.0.0.1:7403", help: "Where services call." },
  DEPUTY_PROXY_PUBLIC_ADDRESS: { kind: "address", default: "127.0.0.1:7413", help: "Where callers from outside call." },
  ...accountAddress,
  ...vaultAddress,
  ...catalogDirectory,
  ...limitSettings,
});

const log = createLogger("proxy", config.DEPUTY_LOG_LEVEL);
dieLoudly(log);
const tls = tlsIdentity(config);
const outgoing = egressOptions(config);
const account = createClient(AccountServiceDefinition, {
  address: config.DEPUTY_ACCOUNT_ADDRESS,
  tls,
  service: "account",
});
const vault = createClient(CredentialVaultDefinition, { address: config.DEPUTY_VAULT_ADDRESS, tls, service: "vault" });
const egress = openEgress(outgoing);
const limitStore = await openLimitStore({
  url: config.DEPUTY_LIMIT_STORE_URL,
  password: config.DEPUTY_LIMIT_STORE_PASSWORD_FILE.reveal(),
  log,
});
const proxyId = newId("prx");
const holds = leaseHolds<InjectionLease>({ monotonicMs: () => performance.now(), wallMs: Date.now });

const server = await startServer({
  definition: streamingProxyDefinition,
  handlers: proxyService({
    account,
    vault,
    catalog: loadCatalog(config.DEPUTY_CATALOG_DIRECTORY, { production: !config.DEPUTY_DEVELOPMENT }),
    leases: { cache: leaseCache(holds, Date.now), proxyId, renew: leaseRenewals(vault, proxyId) },
    egress,
    limits: startLimits(limitRules(config), limitStore, Date.now),
    exemptTargets: outgoing.exemptTargets,
    now: Date.now,
  }),
  callers: proxyCallers,
  authenticate: authenticator(account, Date.now),
  // Bodies are large and the rules of egress are the validation: forward.ts checks the form by hand.
  unvalidated: ["forward", "forwardStream"],
  internalAddress: config.DEPUTY_PROXY_INTERNAL_ADDRESS,
  publicAddress: config.DEPUTY_PROXY_PUBLIC_ADDRESS,
  tls,
  reflection: config.DEPUTY_DEVELOPMENT,
  log,
});
// Without a watch there are no leases.
server.setServing(false);
const watch = watchLeases({ vault, proxyId, holds, log, onChange: server.setServing });
log.info({ internal: config.DEPUTY_PROXY_INTERNAL_ADDRESS, public: config.DEPUTY_PROXY_PUBLIC_ADDRESS }, "serving");

stopInOrder(
  log,
  (timeoutMs) => server.drain(timeoutMs),
  () => watch.stop(),
  () => egress.close(),
  () => limitStore.close(),
  () => account.close(),
  () => vault.close(),
);
