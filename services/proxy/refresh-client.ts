// Asks the vault to refresh a credential that an upstream has refused. The vault sees to it that there is one refresh for each
// version of a token, whoever asks, and one a minute for each account: it alone hears of all proxies.
import { StatusError } from "#libs/errors.ts";
import type { Call, Client } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { LeaseTarget } from "./lease-client.ts";

/** What is asked of the vault. */
export type RefreshingVault = Pick<Client<typeof CredentialVaultDefinition>, "refreshCredential">;

/** What a refused credential has become. */
export interface RefusedCredential {
  /** Whether there is a newer one. */
  readonly replaced: boolean;
  /** Whether a refresh was waited for. */
  readonly refreshed: boolean;
}

// A provider that hangs must not keep the refusal from its caller, who has to be answered within its own time.
const refreshWaitMs = 10_000;
const answerReserveMs = 500;

/** Refreshes the credential of this generation. A refusal of the vault is no failure of the call: the upstream's answer stands. */
export async function refreshRefused(
  vault: RefreshingVault,
  { projectId, environment, externalUserId, accountId }: LeaseTarget,
  generation: bigint,
  call: Call,
): Promise<RefusedCredential> {
  const deadlineMs = Math.min(call.deadlineMs - answerReserveMs, Date.now() + refreshWaitMs);
  try {
    const target = { projectId, environment, externalUserId, accountId };
    const { credential, refreshed } = await vault.refreshCredential({ ...target, generation }, { ...call, deadlineMs });
    return { replaced: credential !== undefined && credential.generation > generation, refreshed };
  } catch (error) {
    if (!(error instanceof StatusError) || call.signal.aborted) throw error;
    return { replaced: false, refreshed: false };
  }
}
