// The account service: knows who connected what, and never sees a stored secret.
import { loadCatalog } from "#libs/catalog.ts";
import { readConfig } from "#libs/config.ts";
import { createLogger } from "#libs/log.ts";
import { dieLoudly, stopInOrder } from "#libs/process.ts";
import { createClient } from "#libs/rpc-client.ts";
import {
  catalogDirectory,
  egressOptions,
  egressSettings,
  gatewayUrl,
  serviceSettings,
  tlsIdentity,
  vaultAddress,
} from "#libs/service-settings.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { startAccount } from "./start-account.ts";
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
const production = !config.DEPUTY_DEVELOPMENT;
const tls = tlsIdentity(config);
const vault = createClient(CredentialVaultDefinition, { address: config.DEPUTY_VAULT_ADDRESS, tls, service: "vault" });
const account = await startAccount({
  log,
  database: {
    url: config.DEPUTY_DATABASE_URL,
    password: config.DEPUTY_DATABASE_PASSWORD_FILE,
    applicationName: "deputy-account",
    statementTimeoutMs: 20_000,
    onIdleError: (error: Error) => log.warn({ err: error }, "an idle connection to the database was lost"),
  },
  vault,
  catalog: loadCatalog(config.DEPUTY_CATALOG_DIRECTORY, { production }),
  tokenKeys: await loadTokenKeys(config.DEPUTY_TOKEN_KEY_FILE.reveal()),
  outgoing: egressOptions(config),
  historyMs: Math.max(leastHistoryMs, config.DEPUTY_HISTORY),
  settings: { gatewayUrl: config.DEPUTY_GATEWAY_URL, developmentUsers: config.DEPUTY_DEVELOPMENT_USERS },
  listener: {
    internalAddress: config.DEPUTY_ACCOUNT_INTERNAL_ADDRESS,
    publicAddress: config.DEPUTY_ACCOUNT_PUBLIC_ADDRESS,
    tls,
    reflection: !production,
  },
});
log.info(account.ports, "serving");

stopInOrder(log, ...account.stopSteps, vault.close);
