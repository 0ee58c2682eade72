// Ed25519 keys that a service signs with: access tokens, receipts, audit checkpoints.
import { createPrivateKey, createPublicKey, type KeyObject } from "node:crypto";
import { calculateJwkThumbprint, type JWK } from "jose";

/** A private key and what others verify with. */
export interface SigningKey {
  readonly privateKey: KeyObject;
  /** The thumbprint of RFC 7638, so that an id needs no place of its own. */
  readonly keyId: string;
  /** The public key as in a JSON Web Key, base64url. */
  readonly x: string;
}

/** Reads a private key, PEM (PKCS #8). Throws one sentence that names the setting and quotes nothing of the key. */
export async function readSigningKey(setting: string, pem: string): Promise<SigningKey> {
  const privateKey = parseKey(pem);
  if (privateKey?.asymmetricKeyType !== "ed25519") {
    throw new Error(`${setting} does not hold an Ed25519 private key in PEM (PKCS #8).`);
  }
  const { x = "" } = createPublicKey(privateKey).export({ format: "jwk" });
  return { privateKey, keyId: await calculateJwkThumbprint({ kty: "OKP", crv: "Ed25519", x }), x };
}

function parseKey(pem: string): KeyObject | undefined {
  try {
    return createPrivateKey(pem);
  } catch {
    // Node's text can quote the key.
    return undefined;
  }
}

/** The public half as a JSON Web Key, for whoever verifies. */
export function publicJwk({ keyId, x }: SigningKey): JWK {
  return { kty: "OKP", crv: "Ed25519", x, kid: keyId, alg: "EdDSA", use: "sig" };
}

/** Reads a public key, PEM or a JSON Web Key. Throws one sentence that names the file. */
export async function readPublicKey(file: string, text: string): Promise<JWK> {
  const key = parsePublicKey(text);
  if (key?.asymmetricKeyType !== "ed25519") {
    throw new Error(`${file} holds no public Ed25519 key, in PEM or as a JSON Web Key`);
  }
  const { x = "" } = key.export({ format: "jwk" });
  return { kty: "OKP", crv: "Ed25519", x, kid: await calculateJwkThumbprint({ kty: "OKP", crv: "Ed25519", x }) };
}

function parsePublicKey(text: string): KeyObject | undefined {
  try {
    return text.trimStart().startsWith("{")
      ? createPublicKey({ key: JSON.parse(text), format: "jwk" })
      : createPublicKey(text);
  } catch {
    return undefined;
  }
}
