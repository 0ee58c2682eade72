// Signs access tokens: EdDSA JWTs that every process verifies by itself with the public keys. The claims are those that
// libs/access-tokens.ts reads.
import { createPrivateKey, createPublicKey } from "node:crypto";
import { calculateJwkThumbprint, SignJWT } from "jose";
import { type IdentityClaims, type TokenKey, tokenIssuer } from "#libs/access-tokens.ts";
import { randomText } from "#libs/ids.ts";

/** The key that this process signs with. */
export interface TokenKeys {
  /** The keys to be published. */
  readonly published: readonly TokenKey[];
  /** Signs a token that ends at `expireMs`, rounded down to a second. */
  sign(claims: IdentityClaims, nowMs: number, expireMs: number): Promise<{ token: string; expireTime: Date }>;
}

/** Reads an Ed25519 private key, PEM (PKCS #8). Its id is the thumbprint of RFC 7638, so it needs no place of its own. */
export async function loadTokenKeys(privateKeyPem: string): Promise<TokenKeys> {
  const key = readKey(privateKeyPem);
  const { x = "" } = createPublicKey(key).export({ format: "jwk" });
  const keyId = await calculateJwkThumbprint({ kty: "OKP", crv: "Ed25519", x });
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
        .sign(key);
      return { token, expireTime: new Date(seconds * 1000) };
    },
  };
}

function readKey(pem: string) {
  try {
    const key = createPrivateKey(pem);
    if (key.asymmetricKeyType === "ed25519") return key;
  } catch {
    // Node's text can quote the key.
  }
  throw new Error("DEPUTY_TOKEN_KEY_FILE does not hold an Ed25519 private key in PEM (PKCS #8).");
}
