// From a provider's grant to what is stored of it: its secrets, and the facts that may be known.
import type { CredentialMaterial, GrantFacts } from "./credentials.ts";
import type { OauthApp } from "./provider.ts";
import { keepAliveAfterSeconds, noticeSeconds, refreshAfterSeconds } from "./refresh-times.ts";
import type { TokenGrant } from "./token-answers.ts";

type GivenGrant = Pick<TokenGrant, "lifetimeSeconds" | "refreshToken" | "scopes">;

/**
 * What a token answer says of a grant; the scopes stay where the provider says nothing of them. `ageSeconds`: how long ago its
 * user gave it.
 */
export function factsOf(app: OauthApp, grant: GivenGrant, scopes: readonly string[], ageSeconds = 0): GrantFacts {
  const { lifetimeSeconds, refreshToken } = grant;
  const dueAfterSeconds = refreshToken === undefined ? undefined : dueAfter(app, lifetimeSeconds);
  return {
    scopes: grant.scopes ?? scopes,
    ...(lifetimeSeconds !== undefined && { lifetimeSeconds }),
    ...(dueAfterSeconds !== undefined && { refreshAfterSeconds: dueAfterSeconds }),
    ...grantEnd(app, grant, ageSeconds),
  };
}

/** When the user has to connect again, as far as the app's facts or the answer tell: the first of the ends that come by themselves. */
function grantEnd(
  { lifecycle }: OauthApp,
  { lifetimeSeconds, refreshToken }: GivenGrant,
  ageSeconds: number,
): Pick<GrantFacts, "grantEnd"> {
  const { refresh_idle_seconds: idle, refresh_absolute_seconds: absolute } = lifecycle;
  const end = (life: number | undefined, age: number) =>
    life === undefined ? [] : [{ afterSeconds: life - age, noticeSeconds: noticeSeconds(life) }];
  const ends = refreshToken === undefined ? end(lifetimeSeconds, 0) : [...end(idle, 0), ...end(absolute, ageSeconds)];
  const [first] = ends.sort((one, other) => one.afterSeconds - other.afterSeconds);
  return first === undefined ? {} : { grantEnd: first };
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
