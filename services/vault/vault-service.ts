// The CredentialVault as handlers: the union of its groups, with leases and status, behind one gate: while the vault is sealed,
// or cannot write its audit, every method but its status says so.
import type { Catalog } from "#libs/catalog.ts";
import type { Handlers } from "#libs/rpc.ts";
import type { Authenticate } from "#libs/rpc-identity.ts";
import type { SigningKey } from "#libs/signing-key.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { appHandlers } from "./app-handlers.ts";
import { findHead } from "./audit-checkpoints.ts";
import { actorOf } from "./audit-entries.ts";
import type { AuditWriter } from "./audit-writer.ts";
import { authorizationHandlers } from "./authorization-handlers.ts";
import type { Authorizer } from "./authorize.ts";
import type { CallersFirst } from "./callers-first.ts";
import { credentialHandlers } from "./credential-handlers.ts";
import { countCredentials, countReasons } from "./credentials.ts";
import type { Gate } from "./gate.ts";
import type { ImportFormats } from "./import-formats.ts";
import { leaseGrants } from "./lease-grants.ts";
import { leaseHandlers } from "./lease-handlers.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import type { Refresher } from "./refresh.ts";
import { countPendingRevocations } from "./revocations.ts";
import type { Rotation } from "./rotation.ts";
import type { VaultDatabase } from "./schema.ts";
import type { SealState } from "./seal-state.ts";
import type { Secrets } from "./secrets.ts";
import { transferHandlers } from "./transfer-handlers.ts";
import type { TryKeys } from "./try-keys.ts";
import { watchLeases } from "./watch-leases.ts";
import { webhookKeyHandlers } from "./webhook-key-handlers.ts";

type VaultHandlers = Handlers<typeof CredentialVaultDefinition>;

/** What the service is made of. */
export interface VaultServiceOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly authorizer: Authorizer;
  readonly refresher: Refresher;
}

/** What goes on beside the calls, and what operators work with. */
export interface Operations {
  readonly sealState: SealState;
  readonly rotation: Rotation;
  readonly importFormats: ImportFormats;
  readonly signals: LeaseSignals;
  readonly signingKey: SigningKey;
  readonly audit: AuditWriter;
  readonly tryKeys: TryKeys;
  readonly callersFirst: CallersFirst;
  /** Of the tokens that renewals carry. */
  readonly authenticate: Authenticate;
  /** Closed, it keeps every method but the status from being called. */
  readonly gate: Gate;
  /** `host:port` of the development upstreams. */
  readonly exemptTargets: readonly string[];
}

/** The service over its collaborators. */
export function vaultService(options: VaultServiceOptions, operations: Operations): VaultHandlers {
  const { rotation, importFormats, signals, signingKey, audit, gate, exemptTargets } = operations;
  const { tryKeys, callersFirst } = operations;
  const grants = leaseGrants(() => performance.now());
  const handlers: Omit<VaultHandlers, "getVaultStatus"> = {
    ...appHandlers({ ...options, signals, exemptTargets }),
    ...credentialHandlers({ ...options, signals, signingKey, tryKeys, callersFirst }),
    ...authorizationHandlers(options),
    ...transferHandlers(options, importFormats),
    ...webhookKeyHandlers(options),
    ...leaseHandlers({ ...options, audit, grants }, operations.authenticate),
    watchLeases: (requests, call) => watchLeases({ ...options, signals, grants, audit }, requests, call),
    async rotateKeys({ activateKekId }, call) {
      return { remaining: await rotation.begin(activateKekId, actorOf(call)) };
    },
  };
  return { ...guarded(handlers, gate), getVaultStatus: () => vaultStatus(options.db, operations) };
}

/** Asks before each call, once for all methods, so that none can forget it. */
function guarded<Methods extends object>(handlers: Methods, gate: Gate): Methods {
  const entries = Object.entries(handlers).map(([name, handler]) => [
    name,
    (...parameters: readonly unknown[]) => {
      gate.requireOpen();
      return handler(...parameters);
    },
  ]);
  return Object.fromEntries(entries);
}

async function vaultStatus(db: VaultDatabase, { sealState, rotation, audit }: Operations) {
  const { sealedReason, activeKekId, dataKeysByKek } = await sealState.check();
  const states = await countCredentials(db);
  const reasons = await countReasons(db);
  const { count, time } = await countPendingRevocations(db);
  const { damaged, processes, processesByKek } = await rotation.status();
  const head = await findHead(db);
  return {
    sealed: sealedReason !== undefined,
    sealedReason: sealedReason ?? "",
    activeKekId,
    dataKeysByKek: Object.fromEntries(dataKeysByKek),
    credentialsByState: Object.fromEntries(states.map(({ state, count }) => [state, count])),
    credentialsByReason: Object.fromEntries(reasons.map(({ reason, count }) => [reason, count])),
    pendingRevocations: count,
    time,
    damagedDataKeys: BigInt(damaged),
    auditUnavailable: !audit.isOpen(),
    auditCheckpointNumber: head?.number ?? 0n,
    auditCheckpointHash: head?.hash.toString("hex") ?? "",
    processes: BigInt(processes),
    processesByKek: Object.fromEntries([...processesByKek].map(([id, held]) => [id, BigInt(held)])),
  };
}
