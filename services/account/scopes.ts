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

const userScopes = ["connect:*"];
const connecting = ["connect:accounts:read", "connect:accounts:write"];

/**
 * The scopes of a connect token that a caller makes; `own` are the caller's, undefined for the operator. Nobody hands on more
 * than is theirs, but for one thing: `connect:tokens:create` is the right to let users connect, so a token may always have what
 * that takes. It has all that it may when nothing is asked for.
 */
export function connectTokenScopes(asked: string, own: readonly string[] = userScopes): readonly string[] {
  if (scopesInclude(own, "connect:*")) return requestedScopes("scope", asked, userScopes);
  // What only makes more tokens is of no use to a user.
  const handedOn = own.filter((scope) => scopesInclude(userScopes, scope) && scope !== "connect:tokens:create");
  return requestedScopes("scope", asked, [...new Set([...connecting, ...handedOn])]);
}

/** Refuses what has not the form of a scope: `*`, `connect:*`, `connect:accounts:read`. */
export function checkScope(field: string, scope: string): void {
  if (!/^(\*|[a-z_]+(:[a-z_]+)*(:\*)?)$/.test(scope)) throw invalidField(field, "holds a text that is not a scope");
}
