// How an error leaves over HTTP: `{ "error": text for people, "code": stable reason, "details"? }` with the statuses that the
// existing clients of this contract expect. They repeat every 5xx, whatever the method, so what may already have had an
// effect upstream is not a 5xx unless the contract says so.
import { type StatusCode, StatusError } from "#libs/errors.ts";

/** What is sent in place of an answer. */
export interface HttpError {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: { readonly error: string; readonly code: string; readonly details?: object };
}

const statusByCode: Readonly<Record<StatusCode, number>> = {
  // Nobody reads this one: the caller has left.
  CANCELLED: 499,
  UNKNOWN: 500,
  INVALID_ARGUMENT: 400,
  DEADLINE_EXCEEDED: 504,
  NOT_FOUND: 404,
  ALREADY_EXISTS: 409,
  PERMISSION_DENIED: 403,
  RESOURCE_EXHAUSTED: 429,
  FAILED_PRECONDITION: 400,
  ABORTED: 409,
  OUT_OF_RANGE: 400,
  // Not 501, which clients would repeat.
  UNIMPLEMENTED: 404,
  INTERNAL: 500,
  UNAVAILABLE: 503,
  DATA_LOSS: 500,
  UNAUTHENTICATED: 401,
};

// Refusals of the caller, as opposed to refusals of where the caller wants to go.
const callerReasons = ["SCOPE_MISSING", "CALLER_NOT_ALLOWED", "CONNECT_TOKEN_NOT_ALLOWED", "MEMBER_NOT_ALLOWED"];

/** The HTTP form of an error of the services. */
export function httpError(error: StatusError): HttpError {
  return withStatus(error, statusByCode[error.code]);
}

/** The HTTP form of an error of a forwarded request, where the upstream's failures have statuses of their own. */
export function proxyHttpError(error: StatusError): HttpError {
  const { code, reason } = error;
  if (reason.startsWith("UPSTREAM_") && code === "UNAVAILABLE") return withStatus(error, 502);
  if (reason === "UPSTREAM_TOO_LARGE" || reason === "UPSTREAM_MALFORMED") return withStatus(error, 424);
  // A token endpoint is an upstream, too.
  if (reason === "NO_ADDRESS" || reason === "REFRESH_FAILING") return withStatus(error, 502);
  // The words that existing clients know for it.
  if (reason === "PROXY_DISABLED") {
    return withStatus(new StatusError(code, reason, "App record not found"), 400);
  }
  if (code === "PERMISSION_DENIED" && !callerReasons.includes(reason)) return withStatus(error, 400);
  return httpError(error);
}

function withStatus(error: StatusError, status: number): HttpError {
  const { message, reason, code, violations } = error;
  // What a service could not help is not told in detail; its own log has it.
  const text = code === "UNKNOWN" || status === 500 ? "Internal error." : status === 429 ? "Throttled" : message;
  return {
    status,
    headers: {
      ...((status === 503 || reason === "REFRESH_FAILING") && { "retry-after": "1" }),
      ...(status === 429 && throttledHeaders(error)),
      ...(status === 401 && { "www-authenticate": "Bearer" }),
    },
    body: { error: text, code: reason, ...(violations.length > 0 && { details: { violations } }) },
  };
}

/** When to come again, as the services say it. */
function throttledHeaders({ metadata }: StatusError): Readonly<Record<string, string>> {
  const { limit, retry_after_seconds: retryAfter = "1", reset_time: reset } = metadata;
  return {
    "retry-after": retryAfter,
    ...(limit !== undefined && { "x-ratelimit-limit": limit, "x-ratelimit-remaining": "0" }),
    ...(reset !== undefined && { "x-ratelimit-reset": reset }),
  };
}
