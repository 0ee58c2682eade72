// Credentials under way between vaults: compact JWE to an operator's public key (ECDH-ES+A256KW or RSA-OAEP-256, A256GCM),
// opened with the private one. Keys are JSON Web Keys. The kind of key decides the algorithm; a record cannot choose a weaker.
import { CompactEncrypt, compactDecrypt, importJWK, type JWK } from "jose";
import { invalidField } from "#libs/errors.ts";

const contentEncryption = "A256GCM";
const recordType = "deputy-credential";

/** Somebody whom records are encrypted to, or who opens them. */
export interface JweKey {
  readonly algorithm: "ECDH-ES+A256KW" | "RSA-OAEP-256";
  readonly key: Exclude<Awaited<ReturnType<typeof importJWK>>, Uint8Array>;
  readonly keyId: string;
}

/** Reads a public key; INVALID_ARGUMENT naming the field when it is none that can be encrypted to. */
export async function readRecipient(text: string, field: string): Promise<JweKey> {
  const jwk = parseJwk(text);
  if (jwk === undefined) throw invalidField(field, "is not a JSON Web Key");
  if (jwk.d !== undefined) throw invalidField(field, "holds a private key: give the public one alone");
  return readKey(jwk).catch(() => {
    throw invalidField(
      field,
      "must be an EC key (P-256, P-384, P-521), an X25519 key, or an RSA key of 2048 bits or more",
    );
  });
}

/** Reads the private key that imports are opened with. Throws one sentence that quotes nothing of it. */
export async function readImportKey(text: string): Promise<JweKey> {
  const jwk = parseJwk(text);
  const key = jwk?.d === undefined ? undefined : await readKey(jwk).catch(() => undefined);
  if (key === undefined)
    throw new Error("DEPUTY_IMPORT_KEY_FILE: is not a private JSON Web Key of kind EC, X25519 or RSA");
  return key;
}

/** Encrypts a value as JSON. */
export async function encryptRecord({ algorithm, key, keyId }: JweKey, value: unknown): Promise<string> {
  const plaintext = Buffer.from(JSON.stringify(value));
  try {
    return await new CompactEncrypt(plaintext)
      .setProtectedHeader({
        alg: algorithm,
        enc: contentEncryption,
        typ: recordType,
        ...(keyId !== "" && { kid: keyId }),
      })
      .encrypt(key);
  } finally {
    plaintext.fill(0);
  }
}

/** Opens what `encryptRecord` made; INVALID_ARGUMENT when it was made for another key or was changed. */
export async function decryptRecord({ algorithm, key }: JweKey, jwe: string): Promise<string> {
  const options = { keyManagementAlgorithms: [algorithm], contentEncryptionAlgorithms: [contentEncryption] };
  try {
    const { plaintext } = await compactDecrypt(jwe, key, options);
    const text = Buffer.from(plaintext).toString("utf8");
    plaintext.fill(0);
    return text;
  } catch {
    throw invalidField("record", "cannot be opened: it was encrypted to another key, or changed");
  }
}

/** Whether a record looks like a compact JWE. */
export function isJwe(record: string): boolean {
  return /^[\w-]+(?:\.[\w-]*){4}$/.test(record);
}

function parseJwk(text: string): JWK | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

async function readKey(jwk: JWK): Promise<JweKey> {
  const algorithm = jwk.kty === "RSA" ? "RSA-OAEP-256" : "ECDH-ES+A256KW";
  // What the key says of its own use is left aside: it must not choose the algorithm.
  const { alg: _alg, use: _use, key_ops: _operations, ...bare } = jwk;
  const key = await importJWK(bare, algorithm);
  if (key instanceof Uint8Array) throw new Error("is no key pair");
  const jweKey = { algorithm, key, keyId: typeof jwk.kid === "string" ? jwk.kid : "" } as const;
  // Too short an RSA key, or a curve that cannot agree on keys, shows at the first use.
  if (jwk.d === undefined) await encryptRecord(jweKey, {});
  return jweKey;
}
