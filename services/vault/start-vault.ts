// A vault at work: its parts are put together here, in the order in which they need one another, and stopped in the order in
// which they still need one another. main.ts says with what; tests start several on one database in the same way.
import type { Catalog } from "#libs/catalog.ts";
import type { PoolOptions } from "#libs/database.ts";
import { type EgressOptions, openEgress } from "#libs/egress.ts";
import type { Logger } from "#libs/log.ts";
import type { TlsIdentity } from "#libs/rpc.ts";
import { startServer } from "#libs/rpc-server.ts";
import type { SigningKey } from "#libs/signing-key.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { accountLocks } from "./account-locks.ts";
import { startAudit } from "./audit.ts";
import { damageEntry } from "./audit-entries.ts";
import { authenticator, type TokenKeysClient } from "./authenticate.ts";
import { createAuthorizer } from "./authorize.ts";
import { vaultCallers } from "./callers.ts";
import { callersFirst } from "./callers-first.ts";
import type { PassPoint } from "./crash-points.ts";
import { dataKeys } from "./data-keys.ts";
import { gateOf } from "./gate.ts";
import type { ImportFormats } from "./import-formats.ts";
import { startJobs } from "./jobs.ts";
import type { KekProvider } from "./keyring.ts";
import { listenForLeases } from "./lease-signals.ts";
import { createRefresher } from "./refresh.ts";
import { startRefreshLoop } from "./refresh-loop.ts";
import { drainSpool } from "./refresh-store.ts";
import { startRotation } from "./rotation.ts";
import { openVaultDatabase } from "./schema.ts";
import { watchSealState } from "./seal-state.ts";
import { secretsOver } from "./secrets.ts";
import { openSpool } from "./spool.ts";
import { keyTester } from "./try-keys.ts";
import { vaultService } from "./vault-service.ts";

/** What a vault is started with. */
export interface VaultOptions {
  readonly log: Logger;
  readonly database: Omit<PoolOptions, "maxConnections">;
  readonly kekProvider: KekProvider;
  readonly signingKey: SigningKey;
  readonly catalog: Catalog;
  readonly outgoing: EgressOptions & { readonly exemptTargets: readonly string[] };
  /** Where the keys of access tokens are published. */
  readonly account: TokenKeysClient;
  readonly importFormats: ImportFormats;
  /** Empty for none. */
  readonly spoolDirectory: string;
  readonly unguardedApps: readonly string[];
  readonly passPoint: PassPoint;
  readonly listener: { readonly address: string; readonly tls: TlsIdentity; readonly reflection: boolean };
  readonly intervals: { readonly sealStateMs: number; readonly rotationMs: number; readonly refreshMs: number };
  /** How long a provider may take; the providers' own limits when absent. */
  readonly providerTimeoutMs?: number;
  /** What is not done beside the calls; all of it is when absent. */
  readonly without?: readonly ("refreshes" | "revocations")[];
}

/** Starts a vault; it serves when this resolves, sealed or not. */
export async function startVault(options: VaultOptions) {
  const { log, database, kekProvider, signingKey, catalog, outgoing, passPoint, unguardedApps, intervals } = options;
  const { spoolDirectory, listener, without = [], providerTimeoutMs: timeoutMs } = options;
  const db = openVaultDatabase({ ...database, maxConnections: 10 });
  const audit = startAudit({ database, signingKey, log });
  const keys = dataKeys({ provider: kekProvider, now: () => performance.now() });
  const secrets = secretsOver(keys, (owner, reason) => audit.note(damageEntry(owner, reason)));
  const egress = openEgress(outgoing);
  const { exemptTargets } = outgoing;
  const providers = { egress, exemptTargets, ...(timeoutMs !== undefined && { timeoutMs }) };
  const locks = accountLocks(database);
  const authorizer = createAuthorizer({ db, secrets, catalog, providers, log });
  const signals = listenForLeases(database, log);
  const spool = spoolDirectory === "" ? undefined : await openSpool({ directory: spoolDirectory, secrets, log });
  const { refreshes } = signals;
  const refreshing = { db, locks, secrets, catalog, providers, log, spool, unguardedApps, refreshes, passPoint };
  const refresher = createRefresher(refreshing);
  const sealState = await watchSealState({ db, provider: kekProvider, log, intervalMs: intervals.sealStateMs });
  const gate = gateOf(sealState, audit);
  const rotation = startRotation({ db, provider: kekProvider, log, intervalMs: intervals.rotationMs });
  if (sealState.isOpen()) await drainSpool(refreshing);
  else sealState.onChange((open) => void (open && drainSpool(refreshing)));
  const authenticate = authenticator(options.account, Date.now);
  const precedence = callersFirst();
  const server = await startServer({
    definition: CredentialVaultDefinition,
    handlers: vaultService(
      { db, secrets, catalog, authorizer, refresher },
      {
        sealState,
        rotation,
        importFormats: options.importFormats,
        signals,
        signingKey,
        audit,
        authenticate,
        gate,
        exemptTargets,
        tryKeys: keyTester(providers),
        callersFirst: precedence,
      },
    ),
    callers: vaultCallers,
    authenticate,
    internalAddress: listener.address,
    tls: listener.tls,
    reflection: listener.reflection,
    log,
  });
  gate.onChange(server.setServing);
  const jobs = without.includes("revocations")
    ? undefined
    : await startJobs({ db, secrets, catalog, providers, log, callersFirst: precedence }, database);
  const loop = without.includes("refreshes")
    ? undefined
    : startRefreshLoop({
        ...{ db, catalog, refresher, log, isOpen: gate.isOpen },
        ...{ pollMs: intervals.refreshMs, ownAppsMs: 10 * intervals.refreshMs },
      });
  return {
    port: server.internalPort,
    describe: () => ({ open: gate.isOpen(), signingKeyId: signingKey.keyId }),
    ...{ authorizer, refresher, sealState, audit, loop, secrets },
    /** To be done in this order, each with the time that calls at work are given. */
    stopSteps: [
      // First, because streams would hold up the drain; proxies then turn to another process.
      signals.stop,
      (drainMs: number) => Promise.all([server.drain(drainMs), loop?.stop()]),
      sealState.stop,
      rotation.stop,
      // What outlives its caller: a grant that is on its way is stored before the way to the provider is closed.
      () => Promise.all([authorizer.idle(), refresher.idle()]),
      () => jobs?.stop(),
      audit.stop,
      egress.close,
      locks.end,
      () => db.destroy(),
    ],
  };
}
