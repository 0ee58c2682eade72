// Properties over many generated cases: how many, and what tells a case that came through the rules from one that was refused.
// FAST_CHECK_RUNS sets how many cases each property gets. A failed property prints the case and the seed that lead to it.
import fc from "fast-check";
import { expect } from "vitest";
import type { Denial } from "#libs/verdict.ts";

/** Cases for each property. */
export const numRuns = Number(process.env.FAST_CHECK_RUNS ?? 30_000);
/** For one property. */
export const timeout = 60_000 + numRuns * 2;

/** Throws unless it holds; `expect` is too slow to be called millions of times. */
export function hold(what: string, holds: boolean): void {
  if (!holds) throw new Error(`does not hold: ${what}`);
}

/** A denial is one of four codes and a named rule, and says what to change in words of its own. */
export function holdDenial({ kind, code, rule, message }: Denial): void {
  hold("the kind", kind === "deny");
  hold("the code", ["INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION", "UNAVAILABLE"].includes(code));
  hold("the rule", /^[A-Z][A-Z0-9_]+$/.test(rule));
  hold("the message is one line", /^[^\p{Cc}\p{Cs}]{10,400}$/u.test(message));
}

/** Runs a property and makes sure that enough cases came through the rules: else nothing would have been shown. */
export function check<T>(arbitrary: fc.Arbitrary<T>, leastAllowed: number, property: (value: T) => boolean): void {
  let allowed = 0;
  fc.assert(
    fc.property(arbitrary, (value) => {
      if (property(value)) allowed += 1;
    }),
    { numRuns },
  );
  expect(allowed / numRuns).toBeGreaterThan(leastAllowed);
}
