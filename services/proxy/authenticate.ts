// Turns what a caller presents into an identity. An access token is verified with the account service's published keys. A
// connect token is exchanged for an access token first, and that one is what is passed on: the vault need not know of
// connect tokens. An exchange is kept until its access token ends, so that a browser's requests cost one exchange.

import { accessTokenVerifier } from "#libs/access-tokens.ts";
import { digest } from "#libs/ids.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { Authenticate } from "#libs/rpc-identity.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";

/** What is asked of the account service. */
export type TokenClient = Pick<Client<typeof AccountServiceDefinition>, "getTokenKeys" | "issueAccessToken">;

interface Exchange {
  readonly accessToken: string;
  readonly expireMs: number;
}

const cacheSize = 1000;
// Fetching keys is not part of one caller's call: many may wait for the same keys.
const keysTimeoutMs = 5000;

/** Makes the check of bearer tokens. */
export function authenticator(account: TokenClient, now: () => number): Authenticate {
  const verify = accessTokenVerifier(async () => {
    const { keys } = await account.getTokenKeys({}, { deadlineMs: now() + keysTimeoutMs });
    return keys;
  }, now);
  const exchanges = new Map<string, Exchange>();

  async function exchange(connectToken: string, along: CallOptions): Promise<string> {
    const key = digest(connectToken).toString("base64");
    const known = exchanges.get(key);
    if (known !== undefined && known.expireMs > now()) return known.accessToken;
    exchanges.delete(key);
    const grant = { $case: "connectToken" as const, value: connectToken };
    const { accessToken, expireTime } = await account.issueAccessToken({ grant }, along);
    const oldest = exchanges.size < cacheSize ? undefined : exchanges.keys().next().value;
    if (oldest !== undefined) exchanges.delete(oldest);
    exchanges.set(key, { accessToken, expireMs: expireTime?.getTime() ?? 0 });
    return accessToken;
  }

  return async (bearer, along) => {
    const token = bearer.startsWith("ctok_") ? await exchange(bearer, along) : bearer;
    return { identity: await verify(token), token };
  };
}
