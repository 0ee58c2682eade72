// Verifies the tokens that proxies pass on, by itself: with the account service's published keys and nobody's word.
import { accessTokenVerifier } from "#libs/access-tokens.ts";
import type { Client } from "#libs/rpc.ts";
import type { Authenticate } from "#libs/rpc-identity.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";

// Fetching keys is not part of one caller's call: many may wait for the same keys.
const keysTimeoutMs = 5_000;

/** What is asked of the account service. */
export type TokenKeysClient = Pick<Client<typeof AccountServiceDefinition>, "getTokenKeys">;

/** Makes the check of bearer tokens. */
export function authenticator(account: TokenKeysClient, now: () => number): Authenticate {
  const verify = accessTokenVerifier(
    async () => (await account.getTokenKeys({}, { deadlineMs: now() + keysTimeoutMs })).keys,
    now,
  );
  return async (token) => ({ identity: await verify(token), token });
}
