// Signs access tokens: EdDSA JWTs that every process verifies by itself with the public keys. The claims are those that
// libs/access-tokens.ts reads.
import { SignJWT } from "jose";
import { type IdentityClaims, type TokenKey, tokenIssuer } from "#libs/access-tokens.ts";
import { randomText } from "#libs/ids.ts";
import { readSigningKey } from "#libs/signing-key.ts";

/** The key that this process signs with. */
export interface TokenKeys {
  /** The keys to be published. */
  readonly published: readonly TokenKey[];
  /** Signs a token that ends at `expireMs`, rounded down to a second. */
  sign(claims: IdentityClaims, nowMs: number, expireMs: number): Promise<{ token: string; expireTime: Date }>;
}

/** Reads an Ed25519 private key, PEM (PKCS #8). */
export async function loadTokenKeys(privateKeyPem: string): Promise<TokenKeys> {
  const { privateKey, keyId, x } = await readSigningKey("DEPUTY_TOKEN_KEY_FILE", privateKeyPem);
  return {
    published: [{ keyId, x }],
    async sign(claims, nowMs, expireMs) {
      const seconds = Math.floor(expireMs / 1000);
      const token = await new SignJWT({ ...claims })
        .setProtectedHeader({ alg: "EdDSA", kid: keyId, typ: "JWT" })
        .setIssuer(tokenIssuer)
        .setAudience(tokenIssuer)
        .setIssuedAt(Math.floor(nowMs / 1000))
        .setExpirationTime(seconds)
        .setJti(randomText())
        .sign(privateKey);
      return { token, expireTime: new Date(seconds * 1000) };
    },
  };
}
