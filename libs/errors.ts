// The one error that crosses process borders: a gRPC status code, a stable reason for programs, a message for people.
// Thrown where the fault is known and caught only at the border (the gRPC adapter, the HTTP edge). Anything else that is
// thrown is a bug or an outage: it is logged with its cause and answered INTERNAL.

/** The gRPC status codes by name, with their numbers on the wire. */
export const statusCodes = {
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

/** A gRPC status code by name. */
export type StatusCode = keyof typeof statusCodes;

/** A field of a request and what is wrong with it. */
export interface FieldViolation {
  /** Path of the field in the request, as the contract spells it: `connect_token.expires_in`. */
  readonly field: string;
  /** What is wrong, for a person. */
  readonly description: string;
}

/** What a StatusError can carry beside code, reason and message. */
export interface StatusErrorOptions {
  readonly violations?: readonly FieldViolation[];
  /** Facts for programs, sent to the caller: never a secret. */
  readonly metadata?: Readonly<Record<string, string>>;
  /** Logged, never sent to the caller. */
  readonly cause?: unknown;
}

/** An outcome that the caller is told of as it is. `reason` is UPPER_SNAKE and part of the contract. */
export class StatusError extends Error {
  readonly code: StatusCode;
  readonly reason: string;
  readonly violations: readonly FieldViolation[];
  readonly metadata: Readonly<Record<string, string>>;

  constructor(code: StatusCode, reason: string, message: string, options: StatusErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "StatusError";
    this.code = code;
    this.reason = reason;
    this.violations = options.violations ?? [];
    this.metadata = options.metadata ?? {};
  }
}

/** INVALID_ARGUMENT for one field: the message names it. */
export function invalidField(field: string, description: string): StatusError {
  return invalidFields([{ field, description }]);
}

/** INVALID_ARGUMENT for several fields: the message names each. */
export function invalidFields(violations: readonly FieldViolation[]): StatusError {
  const message = violations.map(({ field, description }) => `${field}: ${description}`).join("; ");
  return new StatusError("INVALID_ARGUMENT", "INVALID_FIELD", message, { violations });
}

/** NOT_FOUND with the same text for what is absent and what belongs to somebody else. */
export function notFound(what: string): StatusError {
  return new StatusError("NOT_FOUND", `${what.toUpperCase().replaceAll(" ", "_")}_NOT_FOUND`, `No such ${what}.`);
}

/** What is declared in the contract and not built yet. */
export function unimplemented(method: string): StatusError {
  return new StatusError("UNIMPLEMENTED", "NOT_IMPLEMENTED", `${method} is part of the contract but not built yet.`);
}
