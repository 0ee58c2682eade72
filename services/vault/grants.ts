// From a provider's grant to what is stored of it: its secrets, and the facts that may be known.
import type { CredentialMaterial, GrantFacts } from "./credentials.ts";
import type { OauthApp } from "./provider.ts";
import { keepAliveAfterSeconds, refreshAfterSeconds } from "./refresh-times.ts";
import type { TokenGrant } from "./token-answers.ts";

/** What a token answer says of a grant; the scopes stay where the provider says nothing of them. */
export function factsOf(app: OauthApp, grant: TokenGrant, scopes: readonly string[]): GrantFacts {
  const { lifetimeSeconds, refreshToken } = grant;
  const dueAfterSeconds = refreshToken === undefined ? undefined : dueAfter(app, lifetimeSeconds);
  return {
    scopes: grant.scopes ?? scopes,
    ...(lifetimeSeconds !== undefined && { lifetimeSeconds }),
    ...(dueAfterSeconds !== undefined && { refreshAfterSeconds: dueAfterSeconds }),
  };
}

/** Before the access token ends, and before the provider ends a grant that nobody uses; undefined where nothing ends. */
function dueAfter({ lifecycle }: OauthApp, lifetimeSeconds: number | undefined): number | undefined {
  const { min_refresh_age_seconds: minAge, refresh_idle_seconds: idle } = lifecycle;
  const dues = [
    ...(lifetimeSeconds === undefined ? [] : [refreshAfterSeconds(lifetimeSeconds, minAge, Math.random)]),
    ...(idle === undefined ? [] : [keepAliveAfterSeconds(idle, Math.random)]),
  ];
  return dues.length === 0 ? undefined : Math.min(...dues);
}

/** The secrets of a grant, as they are sealed. */
export function materialOf(
  { accessToken, refreshToken }: TokenGrant,
  fields: Readonly<Record<string, string>>,
): CredentialMaterial {
  return { accessToken, ...(refreshToken !== undefined && { refreshToken }), fields };
}
