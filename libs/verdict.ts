// What a rule answers: a verdict is a value, never an exception. A denial names its rule, so that callers, logs and tests
// can tell one refusal from another, and says in a sentence what to change. It repeats no field value and no header value.
import { StatusError } from "./errors.ts";

/**
 * INVALID_ARGUMENT: the form is wrong. PERMISSION_DENIED: the host, port or address is not allowed. FAILED_PRECONDITION: the
 * app's entry or the account has to change first. UNAVAILABLE: the host has no address now.
 */
export type DenialCode = "INVALID_ARGUMENT" | "PERMISSION_DENIED" | "FAILED_PRECONDITION" | "UNAVAILABLE";

/** A refusal by a named rule. */
export interface Denial {
  readonly kind: "deny";
  readonly code: DenialCode;
  /** UPPER_SNAKE and stable: the `reason` of the error that the caller sees. */
  readonly rule: string;
  /** What to change, for a person. */
  readonly message: string;
}

/** The form of a request is wrong. */
export function malformed(rule: string, message: string): Denial {
  return { kind: "deny", code: "INVALID_ARGUMENT", rule, message };
}

/** A host, port or address that is not allowed. */
export function forbidden(rule: string, message: string): Denial {
  return { kind: "deny", code: "PERMISSION_DENIED", rule, message };
}

/** The app's entry or the account is not ready for this request. */
export function notReady(rule: string, message: string): Denial {
  return { kind: "deny", code: "FAILED_PRECONDITION", rule, message };
}

/** The error that carries a denial to the caller. */
export function denialError(denial: Denial): StatusError {
  return new StatusError(denial.code, denial.rule, denial.message);
}
