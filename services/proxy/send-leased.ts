// The sending of one request with a lease, the same for bodies that are whole and for streams. Up to three requests reach the
// upstream for one call, and a POST or PATCH that may have been acted upon is never among the repeats:
//
//   - a request that found no connection is tried once more: not a byte of it has left
//   - one whose connection broke before a byte of an answer came, once more where the method says that twice is the same as
//     once (RFC 9110, 9.2.2): this is how a connection looks that the upstream closed just as it was used again
//   - one that the upstream refused for its credential, once more after a refresh: a refusal means that it was not acted upon,
//     whatever the method
//
// Each only where the request is still there to be sent again.
import type { EgressRequest } from "#libs/egress.ts";
import { EgressError, egressStatusError } from "#libs/egress-error.ts";
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import type { JudgedAnswer } from "./auth-failure.ts";
import { isAuthFailure } from "./auth-failure.ts";
import { type Leased, LeaseOver, type LeaseTarget } from "./lease-client.ts";
import { leaseOver } from "./lease-holds.ts";
import type { ComposeRequest, OutgoingRequest, RequestedCall } from "./outgoing-request.ts";
import { type RefreshingVault, refreshRefused } from "./refresh-client.ts";

/** What became of a call so far. */
export interface Tally {
  /** Requests that were sent upstream. */
  attempts: number;
  refreshed: boolean;
  /** The generation of the credential that the upstream has refused. */
  refused: bigint | undefined;
}

/** What one sending is made of. */
export interface Sending<Answer> {
  readonly request: RequestedCall;
  /** Whether all of it is still there. */
  isWhole(): boolean;
  readonly compose: ComposeRequest;
  readonly tally: Tally;
  readonly send: (request: OutgoingRequest & Pick<EgressRequest, "signals" | "mayStart">) => Promise<Answer>;
}

const idempotentMethods = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"];

/** A call that has not sent anything yet. */
export function newTally(): Tally {
  return { attempts: 0, refreshed: false, refused: undefined };
}

/** Sends. Throws LeaseOver when nothing was sent and another lease may do. */
export async function sendLeased<Answer>(sending: Sending<Answer>, leased: Leased, call: Call): Promise<Answer> {
  const { tally, send } = sending;
  const { lease, hold } = leased;
  const outgoing = sending.compose(lease, sending.request);
  // After a refusal the lease of that credential does not do, wherever it was kept.
  if (tally.refused !== undefined && lease.generation <= tally.refused) throw refusedLease(hold);
  let fault = leaseFault(leased);
  if (fault !== undefined) throw new LeaseOver(fault);
  const mayStart = () => {
    fault = leaseFault(leased);
    if (fault === undefined) tally.attempts += 1;
    return fault === undefined;
  };
  const whole = { ...outgoing, signals: [call.signal, hold.signal], mayStart };
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await send(whole);
    } catch (error) {
      if (fault !== undefined) throw sending.isWhole() ? new LeaseOver(fault) : fault;
      if (!(error instanceof EgressError)) throw error;
      if (attempt > 1 || !mayRepeat(error, sending)) throw egressStatusError(error, sending.request.method);
    }
  }
}

/** Refreshes a credential that the answer refuses, once in a call; throws LeaseOver when the request is to be sent again. */
export async function refreshIfRefused(
  vault: RefreshingVault,
  sending: Pick<Sending<unknown>, "isWhole" | "tally">,
  target: LeaseTarget,
  { lease, hold, refreshed: waited }: Leased,
  call: Call,
  answer: JudgedAnswer,
): Promise<void> {
  const { tally } = sending;
  tally.refreshed ||= waited;
  if (!sending.isWhole() || !lease.refreshable || tally.refused !== undefined) return;
  if (!isAuthFailure(answer, lease.authFailureRules)) return;
  const { replaced, refreshed } = await refreshRefused(vault, target, lease.generation, call);
  if (!replaced) return;
  tally.refreshed ||= refreshed;
  tally.refused = lease.generation;
  throw refusedLease(hold);
}

/** A request that was made with a lease's material is not sent once other material has taken its place. */
function leaseFault({ lease, hold }: Leased): StatusError | undefined {
  return hold.fault() ?? (hold.newest(lease) === lease ? undefined : leaseOver());
}

function mayRepeat({ kind, sent, answered }: EgressError, { request, isWhole }: Sending<unknown>): boolean {
  if (!isWhole()) return false;
  if (!sent) return kind === "connect";
  return kind === "reset" && !answered && idempotentMethods.includes(request.method);
}

/** Gives up a lease for everybody who has it, so that each asks for the next one. */
function refusedLease(hold: Leased["hold"]): LeaseOver {
  const fault = new StatusError(
    "UNAVAILABLE",
    "CREDENTIAL_REFUSED",
    "The upstream refused the credential: send it again.",
  );
  hold.discard(fault);
  return new LeaseOver(fault);
}
