// Renews the leases of accounts in use, many in one call: with a hundred accounts in use the vault is asked twice a second and
// not fifteen times. A renewal waits a moment for others to join it, which nobody feels: the lease in hand lasts longer.
import { StatusError } from "#libs/errors.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { InjectionLease, LeaseRenewal } from "#proto/deputy/vault/v1/leases.ts";

/** What is asked of the vault. */
export type RenewingVault = Pick<Client<typeof CredentialVaultDefinition>, "renewLeases">;

/** Renews one account's lease by the right of the token. Rejects when there is none: who asks anew is told why. */
export type RenewLease = (
  target: Omit<LeaseRenewal, "accessToken">,
  along: Pick<CallOptions, "token">,
) => Promise<InjectionLease>;

interface Waiting {
  readonly renewal: LeaseRenewal;
  readonly resolve: (lease: InjectionLease) => void;
  readonly reject: (error: unknown) => void;
}

// A third of a lease's life is left when its renewal is asked for: over three seconds.
const gatherMs = 500;
const callMs = 2_500;
// The contract's limit.
const mostInCall = 1_000;

/** Makes the one of this process. */
export function leaseRenewals(vault: RenewingVault, proxyId: string): RenewLease {
  let gathered: Waiting[] = [];

  function send(): void {
    const all = gathered;
    gathered = [];
    for (let start = 0; start < all.length; start += mostInCall) ask(all.slice(start, start + mostInCall));
  }

  async function ask(waiting: readonly Waiting[]): Promise<void> {
    try {
      const renewals = waiting.map(({ renewal }) => renewal);
      const { results } = await vault.renewLeases({ proxyId, renewals }, { deadlineMs: Date.now() + callMs });
      for (const [index, { resolve, reject }] of waiting.entries()) {
        const lease = results[index]?.lease;
        if (lease === undefined) reject(notRenewed());
        else resolve(lease);
      }
    } catch (error) {
      for (const { reject } of waiting) reject(error);
    }
  }

  return (target, { token: accessToken = "" }) => {
    const { promise, resolve, reject } = Promise.withResolvers<InjectionLease>();
    if (gathered.length === 0) setTimeout(send, gatherMs);
    gathered.push({ renewal: { ...target, accessToken }, resolve, reject });
    return promise;
  };
}

function notRenewed(): StatusError {
  return new StatusError("UNAVAILABLE", "LEASE_EXPIRED", "The lease could not be renewed: send it again.");
}
