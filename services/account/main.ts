// The account service: knows who connected what, and never sees a stored secret.
import { loadCatalog } from "#libs/catalog.ts";
import { readConfig } from "#libs/config.ts";
import { openDatabase } from "#libs/database.ts";
import { listenForSignals } from "#libs/database-signals.ts";
import { openEgress } from "#libs/egress.ts";
import { createLogger } from "#libs/log.ts";
import { dieLoudly, stopInOrder } from "#libs/process.ts";
import { createClient } from "#libs/rpc-client.ts";
import { startServer } from "#libs/rpc-server.ts";
import {
  catalogDirectory,
  egressOptions,
  egressSettings,
  gatewayUrl,
  serviceSettings,
  tlsIdentity,
  vaultAddress,
} from "#libs/service-settings.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { startPruning } from "./account-changes.ts";
import { accountService } from "./account-service.ts";
import { authenticator } from "./authenticate.ts";
import { callers } from "./callers.ts";
import { eventBodies } from "./event-bodies.ts";
import { startHealthWatch } from "./health-client.ts";
import { startJobs } from "./jobs.ts";
import { catalogsOver } from "./own-apps.ts";
import type { Tables } from "./schema.ts";
import { vaultSigner } from "./signing-client.ts";
import { startSweep } from "./sweep-connecting.ts";
import { loadTokenKeys } from "./token-keys.ts";

// Longer than an event may wait to be posted.
const leastHistoryMs = 2 * 24 * 3_600_000;

const config = readConfig({
  ...serviceSettings,
  ...egressSettings,
  ...catalogDirectory,
  DEPUTY_ACCOUNT_INTERNAL_ADDRESS: { kind: "address", default: "127.0.0.1:7401", help: "Where services call." },
  DEPUTY_ACCOUNT_PUBLIC_ADDRESS: {
    kind: "address",
    default: "127.0.0.1:7411",
    help: "Where callers with a token call.",
  },
  ...vaultAddress,
  DEPUTY_DATABASE_URL: {
    kind: "url",
    help: "The database, as deputy_account: postgres://deputy_account@host/deputy_account.",
  },
  DEPUTY_DATABASE_PASSWORD_FILE: { kind: "secret", help: "The password of deputy_account." },
  DEPUTY_TOKEN_KEY_FILE: { kind: "secret", help: "The Ed25519 private key that signs access tokens, PEM (PKCS #8)." },
  ...gatewayUrl,
  DEPUTY_DEVELOPMENT_USERS: {
    kind: "integer",
    default: "10",
    help: "How many external users the development environment of a project takes; 0: any number.",
  },
  DEPUTY_HISTORY: {
    kind: "duration",
    default: "30d",
    help: "For how long events, and connections that have ended, are kept; 2d at least. The audit stays for good.",
  },
});
const log = createLogger("account", config.DEPUTY_LOG_LEVEL);
dieLoudly(log);

const tls = tlsIdentity(config);
const tokenKeys = await loadTokenKeys(config.DEPUTY_TOKEN_KEY_FILE.reveal());
const catalog = loadCatalog(config.DEPUTY_CATALOG_DIRECTORY, { production: !config.DEPUTY_DEVELOPMENT });
const database = {
  url: config.DEPUTY_DATABASE_URL,
  password: config.DEPUTY_DATABASE_PASSWORD_FILE,
  applicationName: "deputy-account",
  statementTimeoutMs: 20_000,
  onIdleError: (error: Error) => log.warn({ err: error }, "an idle connection to the database was lost"),
};
const db = openDatabase<Tables>({ ...database, maxConnections: 20 });
const signals = listenForSignals({ database, channels: ["account_changes"], log });
const pruning = startPruning(db, log);
const vault = createClient(CredentialVaultDefinition, { address: config.DEPUTY_VAULT_ADDRESS, tls, service: "vault" });
const outgoing = egressOptions(config);
const egress = openEgress(outgoing);

const server = await startServer({
  definition: AccountServiceDefinition,
  handlers: accountService(
    {
      db,
      vault,
      catalog,
      tokenKeys,
      signals,
      gatewayUrl: config.DEPUTY_GATEWAY_URL,
      developmentUsers: config.DEPUTY_DEVELOPMENT_USERS,
      exemptTargets: outgoing.exemptTargets,
    },
    Date.now,
  ),
  callers,
  authenticate: authenticator({ db, tokenKeys }, Date.now),
  internalAddress: config.DEPUTY_ACCOUNT_INTERNAL_ADDRESS,
  publicAddress: config.DEPUTY_ACCOUNT_PUBLIC_ADDRESS,
  tls,
  reflection: config.DEPUTY_DEVELOPMENT,
  log,
});
const { exemptTargets } = outgoing;
const jobs = await startJobs(
  {
    db,
    sign: vaultSigner(db, vault),
    bodies: eventBodies(catalogsOver(db, catalog)),
    outgoing: { egress, exemptTargets },
    gatewayUrl: config.DEPUTY_GATEWAY_URL,
    historyMs: Math.max(leastHistoryMs, config.DEPUTY_HISTORY),
    log,
  },
  database,
  Date.now,
);
const healthWatch = startHealthWatch(
  { db, vault, gatewayUrl: config.DEPUTY_GATEWAY_URL, log, pollMs: 1_000 },
  Date.now,
);
const sweep = startSweep({ db, vault }, log);
log.info({ internalPort: server.internalPort, publicPort: server.publicPort, apps: catalog.size }, "serving");
// The signals first, because streams would hold up the drain.
stopInOrder(
  log,
  signals.stop,
  server.drain,
  sweep.stop,
  pruning.stop,
  healthWatch.stop,
  jobs.stop,
  egress.close,
  vault.close,
  () => db.destroy(),
);
