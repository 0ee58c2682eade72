// How a call has ended: what its caller is told, and the one line about it in the log.
import { StatusError } from "./errors.ts";
import type { Logger } from "./log.ts";
import type { Call } from "./rpc.ts";

/** What the log says of a call. */
export interface CallFacts {
  readonly requestId: string;
  readonly method: string;
  readonly caller: Call["caller"];
  readonly startMs: number;
  /** Absent when it ended well. */
  readonly status: StatusError | undefined;
  /** Never told to the caller. */
  readonly cause?: unknown;
}

/** What the caller is told: expected outcomes as they are, anything else as INTERNAL without its text. */
export function statusOf(error: unknown, { signal, deadlineMs }: Pick<Call, "signal" | "deadlineMs">): StatusError {
  if (error instanceof StatusError) return error;
  if (Date.now() >= deadlineMs)
    return new StatusError("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "The deadline has passed.");
  if (signal.reason instanceof StatusError) return signal.reason;
  if (signal.aborted) return new StatusError("CANCELLED", "CANCELLED", "The caller has left.");
  return new StatusError("INTERNAL", "INTERNAL", "Internal error.");
}

/** Writes the line: louder where an operator has to look. */
export function logCall(log: Logger, { requestId, method, caller, startMs, status, cause }: CallFacts): void {
  const line = {
    requestId,
    method,
    // Not "code": by that name an OAuth authorization code travels, so the logger redacts it.
    status: status?.code ?? "OK",
    reason: status?.reason,
    caller: caller.service,
    subject: caller.token?.subject,
    projectId: caller.token?.projectId,
    durationMs: Math.round((performance.now() - startMs) * 10) / 10,
    err: cause,
  };
  if (status?.code === "INTERNAL" || status?.code === "DATA_LOSS") log.error(line, "call");
  else if (status?.code === "UNAVAILABLE") log.warn(line, "call");
  else log.info(line, "call");
}
