// Forward: judges a request's form, leases the account's credential, judges where the request may go, puts the credential in,
// and sends it once. What an upstream answers is data, whatever its status.
import type { Egress, EgressAnswer, EgressRequest } from "#libs/egress.ts";
import { EgressError, egressStatusError } from "#libs/egress-error.ts";
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import type { ForwardRequest, ForwardResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { type Leased, LeaseOver, type LeasingCollaborators, withLease } from "./lease-client.ts";
import type { Limits } from "./limits.ts";
import { checkForm, composeRequest, maxBodyBytes, maxTimeoutMs } from "./outgoing-request.ts";

/** What Forward works with. */
export interface ForwardCollaborators extends LeasingCollaborators {
  readonly egress: Pick<Egress, "send">;
  readonly limits: Limits;
  /** `host:port` of development upstreams; empty in production. */
  readonly exemptTargets: readonly string[];
  readonly now: () => number;
}

// Kept back from the caller's deadline, so that an upstream's time-out is told as such before the call itself ends.
const reserveMs = 50;

/** Sends one request on behalf of an account. */
export async function forward(
  collaborators: ForwardCollaborators,
  request: ForwardRequest,
  call: Call,
): Promise<ForwardResponse> {
  checkForm(request);
  const startMs = collaborators.now();
  const deadlineMs = Math.min(startMs + (request.timeoutMs || maxTimeoutMs), call.deadlineMs - reserveMs);
  const leave = await collaborators.limits.enter(request);
  try {
    return await withLease(collaborators, request, { ...call, deadlineMs }, (leased, held) =>
      forwardLeased(collaborators, request, leased, held),
    );
  } finally {
    leave();
  }
}

async function forwardLeased(
  { now, egress, exemptTargets }: ForwardCollaborators,
  request: ForwardRequest,
  { lease, hold }: Leased,
  { deadlineMs, signal }: Call,
): Promise<ForwardResponse> {
  const outgoing = composeRequest(lease, request, exemptTargets);
  const sentMs = now();
  if (sentMs >= deadlineMs) {
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
    totalTimeoutMs: deadlineMs - sentMs,
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

async function send(egress: Pick<Egress, "send">, request: EgressRequest): Promise<EgressAnswer> {
  try {
    return await egress.send(request);
  } catch (error) {
    throw error instanceof EgressError ? egressStatusError(error, request.method) : error;
  }
}
