// How an outgoing request can fail, with the one fact that retries and refreshes turn on: whether any byte of it may have
// reached the upstream. No message holds a header, a query or a byte of an answer, and there is no `cause`: the HTTP client's
// parse errors carry the bytes that they stumbled over, which may echo a credential.
import { StatusError } from "./errors.ts";
import { type Denial, denialError } from "./verdict.ts";

/**
 * - `denied`: a rule refused the target; `denial` says which
 * - `invalid`: the request cannot be put on the wire: a fault of our own code
 * - `connect`: no name, no route, refused, or no trusted TLS; `timeout`: out of time, connecting included
 * - `reset`: the connection broke after sending had begun
 * - `too_large`, `malformed`: a body over its limit, or no valid HTTP, which headers over theirs count as; the upstream may
 *   have acted
 * - `aborted`: the caller left, or the process is stopping
 * - `withdrawn`: the caller's own last look, in the moment of sending, said no
 */
export type EgressFailure =
  | "denied"
  | "invalid"
  | "connect"
  | "timeout"
  | "reset"
  | "too_large"
  | "malformed"
  | "aborted"
  | "withdrawn";

/** An outgoing request that has no answer. */
export class EgressError extends Error {
  readonly kind: EgressFailure;
  /** Whether any byte of the request may have reached the upstream. When false, sending again is safe for every method. */
  readonly sent: boolean;
  /** Whether any byte of an answer has come. */
  readonly answered: boolean;
  readonly denial: Denial | undefined;

  constructor(
    kind: EgressFailure,
    message: string,
    sent: boolean,
    { answered = false, denial }: { readonly answered?: boolean; readonly denial?: Denial } = {},
  ) {
    super(message);
    this.name = "EgressError";
    this.kind = kind;
    this.sent = sent;
    this.answered = answered;
    this.denial = denial;
  }
}

/** The failure that carries a denial. */
export function denied(denial: Denial): EgressError {
  return new EgressError("denied", denial.message, false, { denial });
}

// RFC 9110, 9.2.1: a repeat of these asks for nothing but an answer.
const safeMethods = ["GET", "HEAD", "OPTIONS"];

/**
 * The error that tells the caller, for a request with this method. A malformed answer is UNAVAILABLE, and 502 at the REST edge,
 * where a repeat does no harm. Clients repeat that whatever the method, and the upstream may have acted: so for other methods,
 * and for what would be as large the next time, it is another code, and 424 there.
 */
export function egressStatusError({ kind, message, denial }: EgressError, method: string): StatusError {
  switch (kind) {
    case "denied":
      return denial ? denialError(denial) : new StatusError("PERMISSION_DENIED", "DESTINATION_DENIED", message);
    case "invalid":
      return new StatusError("INTERNAL", "INTERNAL", "The request could not be formed.");
    case "connect":
      return new StatusError("UNAVAILABLE", "UPSTREAM_UNREACHABLE", message);
    case "reset":
      return new StatusError("UNAVAILABLE", "UPSTREAM_RESET", message);
    case "timeout":
      return new StatusError("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT", message);
    case "too_large":
      return new StatusError("RESOURCE_EXHAUSTED", "UPSTREAM_TOO_LARGE", message);
    case "malformed":
      return safeMethods.includes(method)
        ? new StatusError("UNAVAILABLE", "UPSTREAM_MALFORMED", message)
        : new StatusError("FAILED_PRECONDITION", "UPSTREAM_MALFORMED", message);
    case "aborted":
      return new StatusError("CANCELLED", "CANCELLED", message);
    case "withdrawn":
      return new StatusError("ABORTED", "WITHDRAWN", message);
  }
}
