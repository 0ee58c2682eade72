// The CredentialVault as handlers: the union of its groups, with leases and status, behind one guard: while the vault is
// sealed every method but its status says so.
import type { Catalog } from "#libs/catalog.ts";
import { unimplemented } from "#libs/errors.ts";
import type { Handlers } from "#libs/rpc.ts";
import type { SigningKey } from "#libs/signing-key.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { authorizationHandlers } from "./authorization-handlers.ts";
import type { Authorizer } from "./authorize.ts";
import { credentialHandlers } from "./credential-handlers.ts";
import { environmentName, leaseMessage } from "./credential-messages.ts";
import { countCredentials, countReasons } from "./credentials.ts";
import type { ImportFormats } from "./import-formats.ts";
import { leaseCredential } from "./lease.ts";
import { leaseGrants } from "./lease-grants.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import { requireWatching } from "./lease-watchers.ts";
import type { Refresher } from "./refresh.ts";
import { countPendingRevocations } from "./revocations.ts";
import type { Rotation } from "./rotation.ts";
import type { VaultDatabase } from "./schema.ts";
import type { SealState } from "./seal-state.ts";
import type { Secrets } from "./secrets.ts";
import { transferHandlers } from "./transfer-handlers.ts";
import { watchLeases } from "./watch-leases.ts";

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
}

/** The service over its collaborators. */
export function vaultService(
  options: VaultServiceOptions,
  { sealState, rotation, importFormats, signals, signingKey }: Operations,
): VaultHandlers {
  const grants = leaseGrants(() => performance.now());
  const handlers: Omit<VaultHandlers, "getVaultStatus"> = {
    ...credentialHandlers({ ...options, signals, signingKey }),
    ...authorizationHandlers(options),
    ...transferHandlers(options, importFormats),
    async leaseInjection({ projectId, environment, externalUserId, accountId, proxyId }, call) {
      await requireWatching(options.db, proxyId);
      const filter = { projectId, environment: environmentName(environment), externalUserId, accountId };
      grants.note(proxyId, filter);
      return { lease: leaseMessage(await leaseCredential(options, filter, call)) };
    },
    async revealCredential() {
      throw unimplemented("RevealCredential");
    },
    watchLeases: (requests, call) => watchLeases({ ...options, signals, grants }, requests, call),
    async rotateKeys({ activateKekId }) {
      return { remaining: await rotation.begin(activateKekId) };
    },
  };
  return { ...guarded(handlers, sealState), getVaultStatus: () => vaultStatus(options.db, sealState, rotation) };
}

/** Asks before each call, once for all methods, so that none can forget it. */
function guarded<Methods extends object>(handlers: Methods, sealState: SealState): Methods {
  const entries = Object.entries(handlers).map(([name, handler]) => [
    name,
    (...parameters: readonly unknown[]) => {
      sealState.requireOpen();
      return handler(...parameters);
    },
  ]);
  return Object.fromEntries(entries);
}

async function vaultStatus(db: VaultDatabase, sealState: SealState, rotation: Rotation) {
  const { sealedReason, activeKekId, dataKeysByKek } = await sealState.check();
  const states = await countCredentials(db);
  const reasons = await countReasons(db);
  const { count, time } = await countPendingRevocations(db);
  const { damaged, processes, processesByKek } = await rotation.status();
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
    processes: BigInt(processes),
    processesByKek: Object.fromEntries([...processesByKek].map(([id, held]) => [id, BigInt(held)])),
  };
}
