// Gives a request the lease of its account, from the cache or from the vault. A lease may be over before its request has left;
// then nothing was sent, and another one is asked for. A request that brings a credential of its own needs neither: what stands
// in place of its lease is made here, and ends with the request.
import { setTimeout as sleep } from "node:timers/promises";
import type { Catalog } from "#libs/catalog.ts";
import { StatusError } from "#libs/errors.ts";
import type { Call, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { AccountState } from "#proto/deputy/account/v1/accounts.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { InjectionLease, type LeaseInjectionRequest } from "#proto/deputy/vault/v1/leases.ts";
import { type InlineCredential, inlineUse } from "./inline-credential.ts";
import type { LeaseCache } from "./lease-cache.ts";
import type { LeaseHold } from "./lease-holds.ts";
import type { RenewLease } from "./lease-renewal-client.ts";

/** What leases are had from. */
export interface LeasingCollaborators {
  readonly account: Pick<Client<typeof AccountServiceDefinition>, "getAccount">;
  readonly catalog: Catalog;
  readonly vault: Pick<Client<typeof CredentialVaultDefinition>, "leaseInjection">;
  readonly leases: {
    readonly cache: LeaseCache<InjectionLease>;
    /** By which the vault knows this process. */
    readonly proxyId: string;
    readonly renew: RenewLease;
  };
}

/** The account that a request is for. */
export type LeaseTarget = Pick<LeaseInjectionRequest, "projectId" | "environment" | "externalUserId" | "accountId">;

/** An account, or the credential that is used in its place. */
export type Credentialed = LeaseTarget & { readonly inlineCredential?: InlineCredential | undefined };

/** A lease and the right to use it. */
export interface Leased {
  readonly lease: InjectionLease;
  readonly hold: LeaseHold<InjectionLease>;
  /** Whether this request waited for a refresh. */
  readonly refreshed: boolean;
}

/** Nothing was sent, and another lease may do. */
export class LeaseOver extends Error {
  readonly fault: StatusError;
  constructor(fault: StatusError) {
    super(fault.message);
    this.fault = fault;
  }
}

type Use<Answer> = (leased: Leased) => Promise<Answer>;

// A lease ends before its use when a connection takes long, or the account is connected anew: seldom twice in a row.
const maxLeases = 4;
const watchPauseMs = 300;

/**
 * Runs `use` with a lease, and again with another one when it throws LeaseOver. When the account is revoked meanwhile, which the
 * hold's signal tells, that is the error.
 */
export async function withLease<Answer>(
  collaborators: LeasingCollaborators,
  { projectId, environment, externalUserId, accountId, inlineCredential }: Credentialed,
  call: Call,
  use: Use<Answer>,
): Promise<Answer> {
  if (inlineCredential !== undefined) return use(inlineLease(collaborators.catalog, inlineCredential));
  const target = { projectId, environment, externalUserId, accountId };
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await useLease(collaborators, target, call, use);
    } catch (error) {
      const isUnwatched = error instanceof StatusError && error.reason === "WATCH_REQUIRED";
      if (!isUnwatched && !(error instanceof LeaseOver)) throw error;
      if (attempt === maxLeases) throw error instanceof LeaseOver ? error.fault : vaultUnreachable();
      // The vault learns of this process with its next heartbeat.
      if (isUnwatched) await sleep(watchPauseMs);
    }
  }
}

function inlineLease(catalog: Catalog, credential: InlineCredential): Leased {
  const { headers, query, allowedDomains, allowedPorts, ...use } = inlineUse(catalog, credential);
  const lists = { headers: [...headers], query: [...query] };
  const places = { allowedDomains: [...allowedDomains], allowedPorts: [...allowedPorts] };
  return { lease: InjectionLease.fromPartial({ ...use, ...lists, ...places }), hold: callersOwn, refreshed: false };
}

// Nobody but the caller can end it.
const callersOwn: Leased["hold"] = {
  signal: new AbortController().signal,
  grant: () => undefined,
  fault: () => undefined,
  discard: () => undefined,
  newest: (lease) => lease,
  end: () => undefined,
};

async function useLease<Answer>(
  collaborators: LeasingCollaborators,
  target: LeaseTarget,
  call: Call,
  use: Use<Answer>,
): Promise<Answer> {
  const { cache } = collaborators.leases;
  const key = { ...target, actor: call.caller.token?.actor };
  const { lease, hold, isNew, giveBack } = await cache.borrow(key, call, (question) =>
    leaseFor(collaborators, target, { ...call, ...question }),
  );
  try {
    // Whom the lease came to from memory did not wait for its refresh.
    return await use({ lease: hold.newest(lease), hold, refreshed: isNew && lease.refreshed });
  } catch (error) {
    throw hold.signal.aborted ? hold.signal.reason : error;
  } finally {
    giveBack();
  }
}

/** The account service says whose the account is and that it is active; the vault judges the caller's token by itself. */
async function leaseFor(
  { account, vault, leases }: LeasingCollaborators,
  target: LeaseTarget,
  call: Call & { readonly isRenewal: boolean },
): Promise<InjectionLease> {
  const leasing = call.isRenewal ? leases.renew(target, call) : leaseAtOnce();
  // When both refuse, the account service's answer is the one told; the other must not count as unhandled.
  leasing.catch(() => undefined);
  const { account: found } = await account.getAccount(target, call);
  if (found?.state !== AccountState.ACTIVE) {
    throw new StatusError("FAILED_PRECONDITION", "ACCOUNT_REVOKED", "The account is revoked: connect it anew.");
  }
  return leasing;

  async function leaseAtOnce(): Promise<InjectionLease> {
    const { lease } = await vault.leaseInjection({ ...target, proxyId: leases.proxyId }, call);
    if (lease === undefined) throw new Error("the vault answered without a lease");
    return lease;
  }
}

function vaultUnreachable(): StatusError {
  return new StatusError("UNAVAILABLE", "VAULT_UNREACHABLE", "The vault cannot be reached now: send it again.");
}
