// The vault's process: alone opens credentials, alone speaks to token endpoints. It listens for other services only.
import { loadCatalog } from "#libs/catalog.ts";
import { readConfig } from "#libs/config.ts";
import { openEgress } from "#libs/egress.ts";
import { createLogger } from "#libs/log.ts";
import { dieLoudly, stopInOrder } from "#libs/process.ts";
import { createClient } from "#libs/rpc-client.ts";
import { startServer } from "#libs/rpc-server.ts";
import { egressOptions, egressSettings, serviceSettings, tlsIdentity } from "#libs/service-settings.ts";
import { readSigningKey } from "#libs/signing-key.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { accountLocks } from "./account-locks.ts";
import { startAudit } from "./audit.ts";
import { damageEntry } from "./audit-entries.ts";
import { authenticator } from "./authenticate.ts";
import { createAuthorizer } from "./authorize.ts";
import { vaultCallers } from "./callers.ts";
import { crashAt } from "./crash-points.ts";
import { dataKeys } from "./data-keys.ts";
import { gateOf } from "./gate.ts";
import { readImportFormats } from "./import-formats.ts";
import { startJobs } from "./jobs.ts";
import { kekSettings, openKekProvider } from "./kek-provider.ts";
import { listenForLeases } from "./lease-signals.ts";
import { createRefresher } from "./refresh.ts";
import { startRefreshLoop } from "./refresh-loop.ts";
import { drainSpool } from "./refresh-store.ts";
import { startRotation } from "./rotation.ts";
import { openVaultDatabase } from "./schema.ts";
import { watchSealState } from "./seal-state.ts";
import { secretsOver } from "./secrets.ts";
import { openSpool } from "./spool.ts";
import { vaultService } from "./vault-service.ts";

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
const signingKey = await readSigningKey("DEPUTY_SIGNING_KEY_FILE", config.DEPUTY_SIGNING_KEY_FILE.reveal());
const outgoing = egressOptions(config);
const database = {
  url: config.DEPUTY_DATABASE_URL,
  password: config.DEPUTY_DATABASE_PASSWORD_FILE,
  applicationName: "deputy-vault",
  statementTimeoutMs: 15_000,
  onIdleError: (error: Error) => log.warn({ err: error }, "a database connection broke"),
};
const catalog = loadCatalog(config.DEPUTY_CATALOG_DIRECTORY, { production });
const db = openVaultDatabase({ ...database, maxConnections: 10 });
const now = () => performance.now();
const keks = await openKekProvider(config, { now });
const audit = startAudit({ database, signingKey, log });
const secrets = secretsOver(dataKeys({ provider: keks.provider, now }), (owner, reason) =>
  audit.note(damageEntry(owner, reason)),
);
const egress = openEgress(outgoing);
const providers = { egress, exemptTargets: outgoing.exemptTargets };
const locks = accountLocks(database);
const authorizer = createAuthorizer({ db, secrets, catalog, providers, log });
const signals = listenForLeases(database, log);
const directory = config.DEPUTY_SPOOL_DIRECTORY;
const spool = directory === "" ? undefined : await openSpool({ directory, secrets, log });
const unguardedApps = config.DEPUTY_REAUTH_UNGUARDED_APPS;
const passPoint = crashAt(config.DEPUTY_TEST_CRASH_POINT, config.DEPUTY_DEVELOPMENT);
const { refreshes } = signals;
const refreshing = { db, locks, secrets, catalog, providers, log, spool, unguardedApps, refreshes, passPoint };
const refresher = createRefresher(refreshing);
const account = createClient(AccountServiceDefinition, {
  address: config.DEPUTY_ACCOUNT_ADDRESS,
  tls,
  service: "account",
});
// A file costs nothing; a key service counts its calls.
const lookMs = config.DEPUTY_KEK_PROVIDER === "file" ? 5_000 : 30_000;
const sealState = await watchSealState({ db, provider: keks.provider, log, intervalMs: lookMs });
const gate = gateOf(sealState, audit);
const importFormats = await readImportFormats(
  config.DEPUTY_IMPORT_KEY_FILE.reveal(),
  config.DEPUTY_IMPORT_MAPPING_FILE,
);
const rotation = startRotation({ db, provider: keks.provider, log, intervalMs: 5_000 });
if (sealState.isOpen()) await drainSpool(refreshing);
else sealState.onChange((open) => void (open && drainSpool(refreshing)));
const server = await startServer({
  definition: CredentialVaultDefinition,
  handlers: vaultService(
    { db, secrets, catalog, authorizer, refresher },
    { sealState, rotation, importFormats, signals, signingKey, audit, gate },
  ),
  callers: vaultCallers,
  authenticate: authenticator(account, Date.now),
  internalAddress: config.DEPUTY_VAULT_INTERNAL_ADDRESS,
  tls,
  reflection: !production,
  log,
});
gate.onChange(server.setServing);
const jobs = await startJobs({ db, secrets, catalog, providers, log }, database);
log.info(
  { address: config.DEPUTY_VAULT_INTERNAL_ADDRESS, open: gate.isOpen(), signingKeyId: signingKey.keyId },
  "serving",
);
const loop = startRefreshLoop({ db, catalog, refresher, log, isOpen: gate.isOpen });

stopInOrder(
  log,
  // First, because streams would hold up the drain; proxies then turn to another process.
  signals.stop,
  (timeoutMs) => Promise.all([server.drain(timeoutMs), loop.stop()]),
  sealState.stop,
  rotation.stop,
  // What outlives its caller: a grant that is on its way is stored before the way to the provider is closed.
  () => Promise.all([authorizer.idle(), refresher.idle()]),
  jobs.stop,
  audit.stop,
  egress.close,
  locks.end,
  account.close,
  () => keks.close(),
  () => db.destroy(),
);
