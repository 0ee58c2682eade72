// Forward: judges a request's form, asks the account service and the vault, judges where it may go, puts the credential in,
// and sends it once. What an upstream answers is data, whatever its status; a lease is used for this one request only, and one
// that is over before the request has left is asked for anew.
import { setTimeout as sleep } from "node:timers/promises";
import { judgeDestination } from "#libs/destination.ts";
import type { Egress, EgressAnswer, EgressRequest } from "#libs/egress.ts";
import { EgressError, egressStatusError } from "#libs/egress-error.ts";
import { invalidField, StatusError, unimplemented } from "#libs/errors.ts";
import type { Call, Client } from "#libs/rpc.ts";
import { type Denial, denialError, malformed } from "#libs/verdict.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { AccountState } from "#proto/deputy/account/v1/accounts.ts";
import type { ForwardRequest, ForwardResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { InjectionLease } from "#proto/deputy/vault/v1/leases.ts";
import { injectCredential } from "./injection.ts";
import type { LeaseHold, LeaseHolds } from "./lease-holds.ts";

/** What Forward works with. */
export interface ForwardCollaborators {
  readonly account: Pick<Client<typeof AccountServiceDefinition>, "getAccount">;
  readonly vault: Pick<Client<typeof CredentialVaultDefinition>, "leaseInjection">;
  readonly leases: {
    readonly holds: Pick<LeaseHolds, "take">;
    /** By which the vault knows this process. */
    readonly proxyId: string;
  };
  readonly egress: Pick<Egress, "send">;
  /** `host:port` of development upstreams; empty in production. */
  readonly exemptTargets: readonly string[];
  readonly now: () => number;
}

const methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const bodilessMethods = ["GET", "HEAD"];
const maxBodyBytes = 8 * 1024 * 1024;
const maxTimeoutMs = 30_000;
// Kept back from the caller's deadline, so that an upstream's time-out is told as such before the call itself ends.
const reserveMs = 50;
// A lease ends before its use when a connection takes long, or the account is connected anew: seldom twice in a row.
const maxLeases = 4;
const watchPauseMs = 300;

/** Sends one request on behalf of an account. */
export async function forward(
  collaborators: ForwardCollaborators,
  request: ForwardRequest,
  call: Call,
): Promise<ForwardResponse> {
  checkForm(request);
  const startMs = collaborators.now();
  const deadlineMs = Math.min(startMs + (request.timeoutMs || maxTimeoutMs), call.deadlineMs - reserveMs);
  for (let lease = 1; ; lease += 1) {
    const hold = await collaborators.leases.holds.take(request, deadlineMs);
    try {
      return await forwardOnce(collaborators, request, { ...call, deadlineMs }, hold);
    } catch (error) {
      if (hold.signal.aborted) throw hold.signal.reason;
      const isUnwatched = error instanceof StatusError && error.reason === "WATCH_REQUIRED";
      if (!isUnwatched && !(error instanceof LeaseOver)) throw error;
      if (lease === maxLeases) throw error instanceof LeaseOver ? error.fault : vaultUnreachable();
      // The vault learns of this process with its next heartbeat.
      if (isUnwatched) await sleep(watchPauseMs);
    } finally {
      hold.end();
    }
  }
}

/** Nothing was sent, and another lease may do. */
class LeaseOver extends Error {
  readonly fault: StatusError;
  constructor(fault: StatusError) {
    super(fault.message);
    this.fault = fault;
  }
}

async function forwardOnce(
  collaborators: ForwardCollaborators,
  request: ForwardRequest,
  call: Call,
  hold: LeaseHold,
): Promise<ForwardResponse> {
  const { now, egress, leases, exemptTargets } = collaborators;
  const signal = AbortSignal.any([call.signal, hold.signal]);
  const lease = await leaseFor(collaborators, { ...request, proxyId: leases.proxyId }, { ...call, signal });
  hold.grant(lease.leaseDurationMs);
  const outgoing = compose(lease, request, exemptTargets);
  const sentMs = now();
  if (sentMs >= call.deadlineMs) {
    throw new StatusError("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "Time ran out before the request was sent.");
  }
  let fault = hold.fault();
  if (fault !== undefined) throw new LeaseOver(fault);
  const answer = await send(egress, {
    ...outgoing,
    signal,
    mayStart: () => {
      fault = hold.fault();
      return fault === undefined;
    },
    totalTimeoutMs: call.deadlineMs - sentMs,
    maxBodyBytes,
  }).catch((error: unknown) => {
    throw fault === undefined ? error : new LeaseOver(fault);
  });
  return {
    status: answer.status,
    headers: answer.headers.map(([name, value]) => ({ name, value })),
    body: answer.body,
    attempts: 1,
    refreshed: lease.refreshed,
    upstreamDurationMs: now() - sentMs,
  };
}

function checkForm(request: ForwardRequest): void {
  const { method, body, timeoutMs } = request;
  if (request.inlineCredential !== undefined) throw unimplemented("inline_credential");
  if (request.externalUserId === "") throw invalidField("external_user_id", "is required");
  if (request.accountId === "") throw invalidField("account_id", "is required");
  if (!methods.includes(method)) throw invalidField("method", `must be one of ${methods.join(", ")}`);
  if (request.url === "") throw invalidField("url", "is required: https://host/path, or a path that begins with /");
  if (body.length > 0 && bodilessMethods.includes(method)) throw invalidField("body", `is not sent with ${method}`);
  if (body.length > maxBodyBytes) throw invalidField("body", `has more than ${maxBodyBytes} bytes`);
  if (timeoutMs < 0 || timeoutMs > maxTimeoutMs) throw invalidField("timeout_ms", `must be 1 to ${maxTimeoutMs}`);
}

/** The account service says whose the account is and that it is active; the vault judges the caller's token by itself. */
async function leaseFor(
  { account, vault }: ForwardCollaborators,
  { projectId, environment, externalUserId, accountId, proxyId }: ForwardRequest & { readonly proxyId: string },
  call: Call,
): Promise<InjectionLease> {
  const named = { projectId, environment, externalUserId, accountId };
  const leasing = vault.leaseInjection({ ...named, proxyId }, call);
  // When both refuse, the account service's answer is the one told; the other must not count as unhandled.
  leasing.catch(() => undefined);
  const { account: found } = await account.getAccount(named, call);
  if (found?.state !== AccountState.ACTIVE) {
    throw new StatusError("FAILED_PRECONDITION", "ACCOUNT_REVOKED", "The account is revoked: connect it anew.");
  }
  const { lease } = await leasing;
  if (lease === undefined) throw new Error("the vault answered without a lease");
  return lease;
}

function compose(
  lease: InjectionLease,
  { url, method, headers, body }: ForwardRequest,
  exemptTargets: readonly string[],
): Pick<EgressRequest, "url" | "method" | "headers" | "body"> {
  const { baseUrl, allowedDomains, allowedPorts, proxyEnabled } = lease;
  if (proxyEnabled && !lease.absoluteUrlsAllowed && !url.startsWith("/")) {
    throw denialError(
      malformed("PATH_REQUIRED", "This app's host depends on the account: give a path that begins with /."),
    );
  }
  const target = allowed(
    judgeDestination({ baseUrl, allowedDomains, allowedPorts, proxyEnabled, exemptTargets }, {}, url),
  );
  const pairs = headers.map(({ name, value }) => [name, value] as const);
  const injected = allowed(injectCredential(target.url, pairs, lease));
  return { url: injected.url, headers: injected.headers, method, ...(body.length > 0 && { body }) };
}

function allowed<Verdict extends { readonly kind: "allow" }>(verdict: Verdict | Denial): Verdict {
  if (verdict.kind === "deny") throw denialError(verdict);
  return verdict;
}

async function send(egress: Pick<Egress, "send">, request: EgressRequest): Promise<EgressAnswer> {
  try {
    return await egress.send(request);
  } catch (error) {
    throw error instanceof EgressError ? egressStatusError(error) : error;
  }
}

function vaultUnreachable(): StatusError {
  return new StatusError("UNAVAILABLE", "VAULT_UNREACHABLE", "The vault cannot be reached now: send it again.");
}
