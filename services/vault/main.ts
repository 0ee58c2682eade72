// The vault's process: alone opens credentials, alone speaks to token endpoints. It listens for other services only.
import { loadCatalog } from "#libs/catalog.ts";
import { readConfig } from "#libs/config.ts";
import { createLogger } from "#libs/log.ts";
import { dieLoudly, stopInOrder } from "#libs/process.ts";
import { createClient } from "#libs/rpc-client.ts";
import { egressOptions, egressSettings, serviceSettings, tlsIdentity } from "#libs/service-settings.ts";
import { readSigningKey } from "#libs/signing-key.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { crashAt } from "./crash-points.ts";
import { readImportFormats } from "./import-formats.ts";
import { kekSettings, openKekProvider } from "./kek-provider.ts";
import { startVault } from "./start-vault.ts";

const config = readConfig({
  ...serviceSettings,
  ...egressSettings,
  DEPUTY_CATALOG_DIRECTORY: { kind: "path", default: "catalog", help: "Folder of the apps." },
  DEPUTY_VAULT_INTERNAL_ADDRESS: { kind: "address", default: "127.0.0.1:7402", help: "Where services call." },
  DEPUTY_ACCOUNT_ADDRESS: {
    kind: "address",
    default: "127.0.0.1:7401",
    help: "The account service, for its token keys.",
  },
  DEPUTY_DATABASE_URL: { kind: "url", help: "The vault's database, as its runtime role, without the password." },
  DEPUTY_DATABASE_PASSWORD_FILE: { kind: "secret", help: "That role's password." },
  ...kekSettings,
  DEPUTY_SIGNING_KEY_FILE: {
    kind: "secret",
    help: "The Ed25519 private key that signs receipts and audit checkpoints, PEM (PKCS #8).",
  },
  DEPUTY_IMPORT_KEY_FILE: {
    kind: "secret",
    default: "",
    help: "A private JSON Web Key that imported records are encrypted to.",
  },
  DEPUTY_IMPORT_MAPPING_FILE: {
    kind: "path",
    default: "",
    help: "How other systems' records become ours, YAML: docs/vault.md.",
  },
  DEPUTY_SPOOL_DIRECTORY: {
    kind: "path",
    default: "",
    help: "A folder of this process alone, kept over restarts: refreshed tokens that the database does not take at once.",
  },
  DEPUTY_REAUTH_UNGUARDED_APPS: {
    kind: "list",
    default: "",
    help: "Apps of which any number of accounts may be marked as in need of their users.",
  },
  DEPUTY_TEST_CRASH_POINT: { kind: "text", default: "", help: "Development only: where in a refresh to be killed." },
});

const log = createLogger("vault", config.DEPUTY_LOG_LEVEL);
dieLoudly(log);
const production = !config.DEPUTY_DEVELOPMENT;
const tls = tlsIdentity(config);
const keks = await openKekProvider(config, { now: () => performance.now() });
const account = createClient(AccountServiceDefinition, {
  address: config.DEPUTY_ACCOUNT_ADDRESS,
  tls,
  service: "account",
});
const vault = await startVault({
  log,
  database: {
    url: config.DEPUTY_DATABASE_URL,
    password: config.DEPUTY_DATABASE_PASSWORD_FILE,
    applicationName: "deputy-vault",
    statementTimeoutMs: 15_000,
    onIdleError: (error: Error) => log.warn({ err: error }, "a database connection broke"),
  },
  kekProvider: keks.provider,
  signingKey: await readSigningKey("DEPUTY_SIGNING_KEY_FILE", config.DEPUTY_SIGNING_KEY_FILE.reveal()),
  catalog: loadCatalog(config.DEPUTY_CATALOG_DIRECTORY, { production }),
  outgoing: egressOptions(config),
  account,
  importFormats: await readImportFormats(config.DEPUTY_IMPORT_KEY_FILE.reveal(), config.DEPUTY_IMPORT_MAPPING_FILE),
  spoolDirectory: config.DEPUTY_SPOOL_DIRECTORY,
  unguardedApps: config.DEPUTY_REAUTH_UNGUARDED_APPS,
  passPoint: crashAt(config.DEPUTY_TEST_CRASH_POINT, config.DEPUTY_DEVELOPMENT),
  listener: { address: config.DEPUTY_VAULT_INTERNAL_ADDRESS, tls, reflection: !production },
  intervals: {
    // A file costs nothing; a key service counts its calls.
    sealStateMs: config.DEPUTY_KEK_PROVIDER === "file" ? 5_000 : 30_000,
    rotationMs: 5_000,
    refreshMs: 1_000,
  },
});
log.info({ address: config.DEPUTY_VAULT_INTERNAL_ADDRESS, ...vault.describe() }, "serving");

stopInOrder(log, ...vault.stopSteps, account.close, () => keks.close());
