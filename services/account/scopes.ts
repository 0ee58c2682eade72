// The scopes that callers ask for, separated by spaces, judged against those that they may have.
import { scopesInclude } from "#libs/callers.ts";
import { invalidField } from "#libs/errors.ts";

/** The scopes asked for, or all that may be had when none are. */
export function requestedScopes(field: string, asked: string, allowed: readonly string[]): readonly string[] {
  if (asked.trim() === "") return allowed;
  const scopes = [...new Set(asked.trim().split(/ +/))];
  for (const scope of scopes) {
    checkScope(field, scope);
    if (!scopesInclude(allowed, scope)) throw invalidField(field, `${scope} is more than ${allowed.join(" ")} allows`);
  }
  return scopes;
}

/** Refuses what has not the form of a scope: `*`, `connect:*`, `connect:accounts:read`. */
export function checkScope(field: string, scope: string): void {
  if (!/^(\*|[a-z_]+(:[a-z_]+)*(:\*)?)$/.test(scope)) throw invalidField(field, "holds a text that is not a scope");
}
