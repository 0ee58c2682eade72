// An account service at work: its parts are put together here, in the order in which they need one another, and stopped in the
// order in which they still need one another. main.ts says with what. Beside the calls every process does three kinds of work:
//
//   jobs         postings of events, through a queue in the database: jobs.ts
//   health       follows the vault's changes of credentials: health-client.ts
//   sweep, prune what is done now and then, by whoever comes first: sweep-connecting.ts, account-changes.ts
import type { Catalog } from "#libs/catalog.ts";
import { openDatabase, type PoolOptions } from "#libs/database.ts";
import { listenForSignals } from "#libs/database-signals.ts";
import { type EgressOptions, openEgress } from "#libs/egress.ts";
import type { Logger } from "#libs/log.ts";
import type { Client, TlsIdentity } from "#libs/rpc.ts";
import { startServer } from "#libs/rpc-server.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { startPruning } from "./account-changes.ts";
import { type AccountSettings, accountService } from "./account-service.ts";
import { authenticator } from "./authenticate.ts";
import { callers } from "./callers.ts";
import { eventBodies } from "./event-bodies.ts";
import { startHealthWatch } from "./health-client.ts";
import { startJobs } from "./jobs.ts";
import { catalogsOver } from "./own-apps.ts";
import type { Tables } from "./schema.ts";
import { vaultSigner } from "./signing-client.ts";
import { startSweep } from "./sweep-connecting.ts";
import type { TokenKeys } from "./token-keys.ts";

/** What an account service is started with. */
export interface AccountOptions {
  readonly log: Logger;
  readonly database: Omit<PoolOptions, "maxConnections">;
  readonly vault: Client<typeof CredentialVaultDefinition>;
  readonly catalog: Catalog;
  readonly tokenKeys: TokenKeys;
  readonly outgoing: EgressOptions & { readonly exemptTargets: readonly string[] };
  readonly settings: Omit<AccountSettings, "exemptTargets">;
  /** How long what has ended is kept. */
  readonly historyMs: number;
  readonly listener: {
    readonly internalAddress: string;
    readonly publicAddress: string;
    readonly tls: TlsIdentity;
    readonly reflection: boolean;
  };
}

/** Starts one; it serves when this resolves. */
export async function startAccount(options: AccountOptions) {
  const { log, database, vault, catalog, tokenKeys, outgoing, settings, historyMs, listener } = options;
  const { exemptTargets } = outgoing;
  const now = Date.now;
  const db = openDatabase<Tables>({ ...database, maxConnections: 20 });
  const signals = listenForSignals({ database, channels: ["account_changes"], log });
  const egress = openEgress(outgoing);
  const server = await startServer({
    definition: AccountServiceDefinition,
    handlers: accountService({ db, vault, catalog, tokenKeys, signals }, { ...settings, exemptTargets }, now),
    callers,
    authenticate: authenticator({ db, tokenKeys }, now),
    ...listener,
    log,
  });
  const posting = {
    sign: vaultSigner(db, vault),
    bodies: eventBodies(catalogsOver(db, catalog)),
    outgoing: { egress, exemptTargets },
    gatewayUrl: settings.gatewayUrl,
    historyMs,
  };
  const jobs = await startJobs({ db, ...posting, log }, database, now);
  const health = startHealthWatch({ db, vault, gatewayUrl: settings.gatewayUrl, log, pollMs: 1_000 }, now);
  const sweep = startSweep({ db, vault }, log);
  const pruning = startPruning(db, log);
  return {
    ports: { internalPort: server.internalPort, publicPort: server.publicPort },
    /** To be done in this order, each with the time that calls at work are given. */
    stopSteps: [
      // First, because streams would hold up the drain.
      signals.stop,
      server.drain,
      sweep.stop,
      pruning.stop,
      health.stop,
      jobs.stop,
      egress.close,
      () => db.destroy(),
    ],
  };
}
