// The handlers of leases: one account's for a request that waits, and the next ones of many accounts for a proxy that has them
// in use. A renewal is judged like a lease: by the proxy's certificate and by the token of the caller whom it is for.
import { admit, bindToToken } from "#libs/callers.ts";
import { StatusError } from "#libs/errors.ts";
import type { Call, Handlers } from "#libs/rpc.ts";
import type { Authenticate } from "#libs/rpc-identity.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { InjectionLease, LeaseInjectionRequest, LeaseRenewal } from "#proto/deputy/vault/v1/leases.ts";
import { proxyForCaller } from "./callers.ts";
import { environmentName, leaseMessage } from "./credential-messages.ts";
import { type LeaseOptions, leaseCredential } from "./lease.ts";
import type { LeaseGrants } from "./lease-grants.ts";
import { requireWatching } from "./lease-watchers.ts";

type Wanted = Pick<LeaseInjectionRequest, "projectId" | "environment" | "externalUserId" | "accountId">;

/** The handlers over what leases are made from. */
export function leaseHandlers(
  { grants, ...options }: LeaseOptions & { readonly grants: LeaseGrants },
  authenticate: Authenticate,
): Pick<Handlers<typeof CredentialVaultDefinition>, "leaseInjection" | "renewLeases"> {
  /** For a proxy that is watching. */
  async function leaseTo(proxyId: string, wanted: Wanted, call: Call): Promise<InjectionLease> {
    const { projectId, environment, externalUserId, accountId } = wanted;
    const filter = { projectId, environment: environmentName(environment), externalUserId, accountId };
    grants.note(proxyId, filter);
    return leaseMessage(await leaseCredential(options, filter, call));
  }

  async function renew(proxyId: string, renewal: LeaseRenewal, call: Call) {
    try {
      const { identity, token } = await authenticate(renewal.accessToken, call);
      const caller = { ...call.caller, token: identity };
      admit([proxyForCaller], caller);
      bindToToken(renewal, identity);
      return { lease: await leaseTo(proxyId, renewal, { ...call, caller, token }) };
    } catch (error) {
      if (error instanceof StatusError) return { lease: undefined };
      throw error;
    }
  }

  return {
    async leaseInjection({ proxyId, ...wanted }, call) {
      await requireWatching(options.db, proxyId);
      return { lease: await leaseTo(proxyId, wanted, call) };
    },
    async renewLeases({ proxyId, renewals }, call) {
      await requireWatching(options.db, proxyId);
      return { results: await Promise.all(renewals.map((renewal) => renew(proxyId, renewal, call))) };
    },
  };
}
