// What callers are told of each failure, and which of them a client may repeat.
import { expect, it } from "vitest";
import { denied, EgressError, type EgressFailure, egressStatusError } from "#libs/egress-error.ts";
import { forbidden } from "#libs/verdict.ts";

it.each<[EgressFailure, string, string]>([
  ["connect", "UNAVAILABLE", "UPSTREAM_UNREACHABLE"],
  ["reset", "UNAVAILABLE", "UPSTREAM_RESET"],
  ["timeout", "DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT"],
  ["too_large", "RESOURCE_EXHAUSTED", "UPSTREAM_TOO_LARGE"],
  ["malformed", "FAILED_PRECONDITION", "UPSTREAM_MALFORMED"],
  ["aborted", "CANCELLED", "CANCELLED"],
  ["invalid", "INTERNAL", "INTERNAL"],
])("%s is told as %s with the reason %s", (kind, code, reason) => {
  expect(egressStatusError(new EgressError(kind, "text", true), "POST")).toMatchObject({ code, reason });
});

it("a denial is told with its own code, rule and message", () => {
  const error = egressStatusError(denied(forbidden("ADDRESS_NOT_ALLOWED", "Not public.")), "POST");
  expect(error).toMatchObject({ code: "PERMISSION_DENIED", reason: "ADDRESS_NOT_ALLOWED", message: "Not public." });
});

it.each(["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])(
  "a malformed answer to %s may be repeated only where that asks for nothing but an answer",
  (method) => {
    const { code } = egressStatusError(new EgressError("malformed", "text", true), method);
    expect(code).toBe(["GET", "HEAD", "OPTIONS"].includes(method) ? "UNAVAILABLE" : "FAILED_PRECONDITION");
  },
);
