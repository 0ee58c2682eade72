// Verifies the access tokens of callers: EdDSA JWTs that the account service signs. Each process verifies by itself with
// the published keys; a verdict is kept until the token ends or the keys change, so a warm request costs a look-up in a map.
import { createLocalJWKSet, errors, type JWTPayload, jwtVerify } from "jose";
import { z } from "zod";
import type { TokenIdentity } from "./callers.ts";
import { StatusError } from "./errors.ts";

/** `iss` and `aud` of every access token. */
export const tokenIssuer = "deputy";

/** A public Ed25519 key: key id and `x` of the JSON Web Key. */
export interface TokenKey {
  readonly keyId: string;
  readonly x: string;
}

/** Verifies a token, or throws UNAUTHENTICATED. */
export type VerifyAccessToken = (token: string) => Promise<TokenIdentity>;

// Where the claims of a token go in an identity; the account service signs what this reads.
const claims = z.object({
  sub: z.string(),
  exp: z.number(),
  project_id: z.string(),
  scope: z.string(),
  environment: z.number().optional(),
  external_user_id: z.string().optional(),
  actor: z.object({ member_id: z.string(), role: z.string() }).optional(),
});

/** The claims that carry an identity. */
export type IdentityClaims = Omit<z.infer<typeof claims>, "exp">;

const cacheSize = 10_000;
// An unknown key id makes the keys be fetched again, but not more often than this: a forged id must not become a load.
const keyRefreshMs = 5_000;
// Keys are looked at again this often while tokens come in: one that is taken back is good for no longer.
const keyLifeMs = 300_000;

/** Makes a verifier over the keys that `fetchKeys` gives; they are fetched at first use and when a token names a new one. */
export function accessTokenVerifier(
  fetchKeys: () => Promise<readonly TokenKey[]>,
  now: () => number,
): VerifyAccessToken {
  let verdicts = new Map<string, TokenIdentity>();
  let published = "";
  let keys: ReturnType<typeof createLocalJWKSet> | undefined;
  let fetchedMs = Number.NEGATIVE_INFINITY;
  let fetching: Promise<void> | undefined;

  async function fetchOnce(): Promise<void> {
    const found = await fetchKeys();
    if (JSON.stringify(found) === published) return;
    published = JSON.stringify(found);
    verdicts = new Map();
    keys = createLocalJWKSet({
      keys: found.map(({ keyId, x }) => ({ kty: "OKP", crv: "Ed25519", alg: "EdDSA", kid: keyId, x })),
    });
  }

  // All that need the keys at the same time wait for one fetch, which may bring what each is looking for.
  function refreshKeys(): Promise<void> {
    if (fetching === undefined) {
      fetchedMs = now();
      fetching = fetchOnce().finally(() => {
        fetching = undefined;
      });
    }
    return fetching;
  }

  async function verify(token: string): Promise<JWTPayload> {
    const options = { issuer: tokenIssuer, audience: tokenIssuer, algorithms: ["EdDSA"], currentDate: new Date(now()) };
    const attempt = async () => (await jwtVerify(token, keys as NonNullable<typeof keys>, options)).payload;
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof errors.JWKSNoMatchingKey)) throw error;
      if (fetching === undefined && now() - fetchedMs < keyRefreshMs) throw error;
      await refreshKeys();
      return await attempt();
    }
  }

  return async (token) => {
    // Nobody waits for it, and while it fails the keys at hand go on.
    if (keys !== undefined && now() - fetchedMs > keyLifeMs) refreshKeys().catch(() => undefined);
    const known = verdicts.get(token);
    if (known !== undefined && known.expireMs > now()) return known;
    try {
      if (keys === undefined) await refreshKeys();
      // A verdict by keys that change meanwhile goes with them.
      const current = verdicts;
      const identity = identityOf(claims.parse(await verify(token)));
      if (current.size >= cacheSize) current.delete(current.keys().next().value as string);
      current.set(token, identity);
      return identity;
    } catch (error) {
      verdicts.delete(token);
      if (error instanceof errors.JWTExpired) throw invalidToken("TOKEN_EXPIRED", "The access token has expired.");
      if (error instanceof errors.JOSEError || error instanceof z.ZodError) {
        throw invalidToken("TOKEN_INVALID", "The access token is not valid.");
      }
      throw error;
    }
  };
}

function identityOf({
  sub,
  exp,
  project_id,
  scope,
  environment,
  external_user_id,
  actor,
}: z.infer<typeof claims>): TokenIdentity {
  return {
    subject: sub,
    projectId: project_id,
    scopes: scope.split(" "),
    expireMs: exp * 1000,
    ...(environment !== undefined && { environment }),
    ...(external_user_id !== undefined && { externalUserId: external_user_id }),
    ...(actor !== undefined && { actor: { memberId: actor.member_id, role: actor.role } }),
  };
}

function invalidToken(reason: string, message: string): StatusError {
  return new StatusError("UNAUTHENTICATED", reason, message);
}
