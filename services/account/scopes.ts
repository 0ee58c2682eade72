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

// What a user's browser can need: connecting takes the first two.
const connecting = ["connect:accounts:read", "connect:accounts:write"];
const forUsers = [...connecting, "connect:proxy"];

/**
 * The scopes of a connect token that a caller makes; `own` are the caller's, undefined for the operator. Nobody hands on more
 * than is theirs, but for one thing: `connect:tokens:create` is the right to let users connect, so a token always may have what
 * that takes, and has it when nothing is asked for.
 */
export function connectTokenScopes(asked: string, own: readonly string[] = ["connect:*"]): readonly string[] {
  if (scopesInclude(own, "connect:*")) return requestedScopes("scope", asked, ["connect:*"]);
  const allowed = forUsers.filter((scope) => connecting.includes(scope) || scopesInclude(own, scope));
  return requestedScopes("scope", asked, allowed);
}

/** Refuses what has not the form of a scope: `*`, `connect:*`, `connect:accounts:read`. */
export function checkScope(field: string, scope: string): void {
  if (!/^(\*|[a-z_]+(:[a-z_]+)*(:\*)?)$/.test(scope)) throw invalidField(field, "holds a text that is not a scope");
}
