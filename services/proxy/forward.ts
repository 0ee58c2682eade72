// Forward: judges a request's form, leases the account's credential, judges where the request may go, puts the credential in,
// and sends it. What an upstream answers is data, whatever its status.
import type { Egress, EgressAnswer } from "#libs/egress.ts";
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import type { ForwardRequest, ForwardResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { passedOn } from "./body-memory.ts";
import { type Leased, type LeasingCollaborators, withLease } from "./lease-client.ts";
import type { Limits } from "./limits.ts";
import { type ComposeRequest, checkForm, maxBodyBytes, maxTimeoutMs } from "./outgoing-request.ts";
import { redactor } from "./redaction.ts";
import type { RefreshingVault } from "./refresh-client.ts";
import { newTally, refreshIfRefused, type Sending, sendLeased } from "./send-leased.ts";

/** What forwarding works with. */
export interface ForwardCollaborators extends LeasingCollaborators {
  readonly vault: LeasingCollaborators["vault"] & RefreshingVault;
  readonly egress: Pick<Egress, "send" | "open">;
  readonly limits: Limits;
  readonly compose: ComposeRequest;
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
  const { vault, egress, compose, now } = collaborators;
  const deadlineMs = Math.min(now() + (request.timeoutMs || maxTimeoutMs), call.deadlineMs - reserveMs);
  const tally = newTally();
  const sending: Sending<EgressAnswer> = {
    request,
    compose,
    tally,
    isWhole: () => true,
    send: (outgoing) => egress.send({ ...outgoing, totalTimeoutMs: timeLeft(deadlineMs - now()), maxBodyBytes }),
  };
  const leave = await collaborators.limits.enter(request);
  try {
    const bounded = { ...call, deadlineMs };
    return await withLease(collaborators, request, bounded, async (leased) => {
      const sentMs = now();
      const answer = await sendLeased(sending, leased, bounded);
      const upstreamDurationMs = now() - sentMs;
      passedOn(request.body);
      passedOn(answer.body);
      await refreshIfRefused(vault, sending, request, leased, bounded, answer);
      const { attempts, refreshed } = tally;
      return { ...shown(answer, leased.lease), attempts, refreshed, upstreamDurationMs };
    });
  } finally {
    leave();
  }
}

/** The answer with the credential masked in it. */
function shown({ status, headers, body }: EgressAnswer, lease: Leased["lease"]) {
  const clean = redactor(lease);
  const begin = clean.push(body);
  const rest = clean.end();
  return {
    status,
    headers: clean.headers(headers).map(([name, value]) => ({ name, value })),
    body: rest.length === 0 ? begin : Buffer.concat([begin, rest]),
  };
}

function timeLeft(leftMs: number): number {
  if (leftMs > 0) return leftMs;
  throw new StatusError("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "Time ran out before the request was sent.");
}
