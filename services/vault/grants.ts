// From a provider's grant to what is stored of it: its secrets, and the facts that may be known.
import type { CredentialMaterial, GrantFacts } from "./credentials.ts";
import type { OauthApp } from "./provider.ts";
import { refreshAfterSeconds } from "./refresh-times.ts";
import type { TokenGrant } from "./token-answers.ts";

/** What a token answer says of a grant; the scopes stay where the provider says nothing of them. */
export function factsOf(app: OauthApp, grant: TokenGrant, scopes: readonly string[]): GrantFacts {
  const { lifetimeSeconds, refreshToken } = grant;
  const minAge = app.lifecycle.min_refresh_age_seconds;
  return {
    scopes: grant.scopes ?? scopes,
    ...(lifetimeSeconds !== undefined && { lifetimeSeconds }),
    ...(lifetimeSeconds !== undefined &&
      refreshToken !== undefined && { refreshAfterSeconds: refreshAfterSeconds(lifetimeSeconds, minAge, Math.random) }),
  };
}

/** The secrets of a grant, as they are sealed. */
export function materialOf(
  { accessToken, refreshToken }: TokenGrant,
  fields: Readonly<Record<string, string>>,
): CredentialMaterial {
  return { accessToken, ...(refreshToken !== undefined && { refreshToken }), fields };
}
