// Tells who a bearer is: an access token is verified with this process's own keys, a connect token is looked up. One that
// was used still speaks for its user until its end; see connect-tokens.ts.
import { accessTokenVerifier } from "#libs/access-tokens.ts";
import type { TokenIdentity } from "#libs/callers.ts";
import type { Authenticate } from "#libs/rpc-identity.ts";
import { actorOfToken, findConnectToken, invalidConnectToken } from "./connect-tokens.ts";
import type { AccountDatabase, ConnectTokenRow } from "./schema.ts";
import type { TokenKeys } from "./token-keys.ts";

export function authenticator(
  { db, tokenKeys }: { db: AccountDatabase; tokenKeys: TokenKeys },
  now: () => number,
): Authenticate {
  const verify = accessTokenVerifier(async () => tokenKeys.published, now);
  return async (bearer) => {
    if (!bearer.startsWith("ctok_")) return { identity: await verify(bearer), token: bearer };
    const connectToken = await findConnectToken(db, bearer, new Date(now()));
    if (connectToken === undefined) throw invalidConnectToken();
    return { identity: connectTokenIdentity(connectToken), token: bearer };
  };
}

/** A connect token's right: one user in one environment, and what its maker's member may do there. Its subject is its id, never its text. */
export function connectTokenIdentity(row: ConnectTokenRow): TokenIdentity {
  const actor = actorOfToken(row);
  return {
    subject: row.id,
    projectId: row.projectId,
    environment: row.environment,
    externalUserId: row.externalUserId,
    scopes: row.scopes,
    expireMs: row.expireTime.getTime(),
    ...(actor !== undefined && { actor }),
  };
}
