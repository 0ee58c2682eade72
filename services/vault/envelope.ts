// The envelope: how a secret lies in the database, and the only file of the vault with ciphers in it.
//
//   key-encryption key (KEK, in the keyring)  --wraps-->  data key (one per record)  --HKDF-->  a key per message
//
//   blob:     01 version | 01 suite | 32 salt | 32 commitment | 12 nonce | ciphertext | 16 tag
//   wrapped:  01 version | 01 suite |                           12 nonce | data key   | 16 tag
//
// AES-GCM does not commit to its key: one ciphertext can be made that opens under two keys. So HKDF-SHA-512 gives 64 bytes
// per message, half the key and half a commitment to it, and the commitment is compared before anything is decrypted. That
// also tells the wrong key (WRONG_KEY) from changed bytes (TAMPERED). A fresh salt gives a fresh key per message, so a
// random 96-bit nonce never meets its like under one key. A KEK is used directly: at most 2^32 wraps, far above what one
// rotation brings.
//
// The associated data names the row. A blob moved to another row, or mixed with another row's columns, does not open.
// What it cannot show: a whole row put back as it was earlier. `generation` only ties the blob to its own column.
//
// Randomness is no argument here: whoever could repeat a nonce could break the cipher. The format is frozen by
// test/vectors/envelope.json: blobs of version 1 must open for ever. Another format is another suite number.
import {
  createCipheriv,
  createDecipheriv,
  createSecretKey,
  generateKeySync,
  hkdfSync,
  type KeyObject,
  randomBytes,
  timingSafeEqual,
} from "node:crypto";
import { StatusError } from "#libs/errors.ts";
import { lengthPrefixed } from "./length-prefixed.ts";

const version = 1;
const suite = 1;
const headerBytes = 2;
const saltBytes = 32;
const commitmentBytes = 32;
const nonceBytes = 12;
const tagBytes = 16;
const keyBytes = 32;
const header = Buffer.from([version, suite]);
const derivationInfo = Buffer.from("deputy-vault/v1/suite01");

/** What a sealed record is for; part of the stored format, so a name once used stays. */
export type Purpose = "credential" | "oauth-client" | "authorization" | "revocation" | "spool" | "webhook-key";

/** The row that a blob belongs to. A field that does not apply is "". */
export interface SealContext {
  readonly purpose: Purpose;
  /** Name of the plaintext's shape, so that one shape is never read as another. */
  readonly schema: string;
  readonly projectId: string;
  readonly environment: string;
  readonly externalUserId: string;
  /** The record's own id: an account or, for the other purposes, the OAuth client or outbox row. Without it siblings could be swapped. */
  readonly accountId: string;
  readonly appSlug: string;
  readonly dataKeyId: string;
  /** 0 to 2^64-1. */
  readonly generation: bigint;
}

/** What a wrapped data key belongs to. */
export interface WrapContext {
  readonly kekId: string;
  readonly dataKeyId: string;
  readonly accountId: string;
}

/** Why stored bytes do not open. Cut inside the ciphertext shows as TAMPERED, shorter than any blob as TRUNCATED. */
export type OpenFailure = "UNKNOWN_VERSION" | "WRONG_KEY" | "TAMPERED" | "TRUNCATED";

const failureTexts: Readonly<Record<OpenFailure, string>> = {
  UNKNOWN_VERSION: "The stored secret has a format that this version does not know.",
  WRONG_KEY: "The stored secret was sealed under another data key.",
  TAMPERED: "The stored secret, or the row it stands in, was changed after it was sealed.",
  TRUNCATED: "The stored secret is incomplete.",
};

function openFailure(reason: OpenFailure): StatusError {
  return new StatusError("DATA_LOSS", reason, failureTexts[reason]);
}

/** A new data key: 32 random bytes, made outside the JavaScript heap; wrapping alone takes a copy, and zeroes it. */
export function newDataKey(): KeyObject {
  return generateKeySync("aes", { length: keyBytes * 8 });
}

/** Seals a plaintext for one row. The caller still owns the plaintext and may zero it. */
export function seal(dataKey: KeyObject, context: SealContext, plaintext: Buffer): Buffer {
  const salt = randomBytes(saltBytes);
  const { messageKey, commitment } = deriveMessageKey(dataKey, salt);
  return Buffer.concat([header, salt, commitment, ...encrypt(messageKey, sealAssociatedData(context), plaintext)]);
}

/** Opens what `seal` made for the same key and row. Throws DATA_LOSS with an `OpenFailure` as its reason. */
export function open(dataKey: KeyObject, context: SealContext, blob: Buffer): Buffer {
  const commitmentStart = headerBytes + saltBytes;
  const bodyStart = commitmentStart + commitmentBytes;
  checkHeader(blob, bodyStart + nonceBytes + tagBytes);
  const { messageKey, commitment } = deriveMessageKey(dataKey, blob.subarray(headerBytes, commitmentStart));
  if (!timingSafeEqual(commitment, blob.subarray(commitmentStart, bodyStart))) throw openFailure("WRONG_KEY");
  return decrypt(messageKey, sealAssociatedData(context), blob.subarray(bodyStart));
}

/** Encrypts a data key under a key-encryption key held by this process. */
export function wrapDataKey(kek: KeyObject, context: WrapContext, dataKey: KeyObject): Buffer {
  const plaintext = dataKey.export();
  try {
    return Buffer.concat([header, ...encrypt(kek, wrapAssociatedData(context), plaintext)]);
  } finally {
    plaintext.fill(0);
  }
}

/** Decrypts what `wrapDataKey` made. Throws DATA_LOSS with an `OpenFailure` as its reason. */
export function unwrapDataKey(kek: KeyObject, context: WrapContext, wrappedDataKey: Buffer): KeyObject {
  checkHeader(wrappedDataKey, headerBytes + nonceBytes + keyBytes + tagBytes);
  const plaintext = decrypt(kek, wrapAssociatedData(context), wrappedDataKey.subarray(headerBytes));
  try {
    return createSecretKey(plaintext);
  } finally {
    plaintext.fill(0);
  }
}

function checkHeader(bytes: Buffer, leastBytes: number): void {
  if (bytes.length < headerBytes) throw openFailure("TRUNCATED");
  if (bytes[0] !== version || bytes[1] !== suite) throw openFailure("UNKNOWN_VERSION");
  if (bytes.length < leastBytes) throw openFailure("TRUNCATED");
}

function deriveMessageKey(dataKey: KeyObject, salt: Buffer): { messageKey: KeyObject; commitment: Buffer } {
  const output = hkdfSha512(dataKey, salt, derivationInfo, keyBytes + commitmentBytes);
  const messageKey = createSecretKey(output.subarray(0, keyBytes));
  output.fill(0, 0, keyBytes);
  return { messageKey, commitment: output.subarray(keyBytes) };
}

function encrypt(key: KeyObject, associatedData: Buffer, plaintext: Buffer): [nonce: Buffer, sealed: Buffer] {
  const nonce = randomBytes(nonceBytes);
  return [nonce, aesGcmEncrypt(key, nonce, associatedData, plaintext)];
}

function decrypt(key: KeyObject, associatedData: Buffer, body: Buffer): Buffer {
  const plaintext = aesGcmDecrypt(key, body.subarray(0, nonceBytes), associatedData, body.subarray(nonceBytes));
  if (plaintext === undefined) throw openFailure("TAMPERED");
  return plaintext;
}

function sealAssociatedData(context: SealContext): Buffer {
  const { purpose, schema, projectId, environment, externalUserId, accountId, appSlug, dataKeyId } = context;
  const generation = Buffer.alloc(8);
  generation.writeBigUInt64BE(context.generation);
  return lengthPrefixed([
    ...["deputy-vault", purpose, schema, projectId, environment, externalUserId, accountId, appSlug, dataKeyId],
    generation,
  ]);
}

/** What a data key is bound to, as bytes; for KEKs that are elsewhere too. */
export function wrapAssociatedData({ kekId, dataKeyId, accountId }: WrapContext): Buffer {
  return lengthPrefixed(["deputy-kek", kekId, dataKeyId, accountId]);
}

/** HKDF-SHA-512. Exported, like the two below, for the published test vectors alone. */
export function hkdfSha512(key: KeyObject, salt: Buffer, info: Buffer, outputBytes: number): Buffer {
  return Buffer.from(hkdfSync("sha512", key, salt, info, outputBytes));
}

/** AES-256-GCM: the ciphertext, then the tag. A `KeyObject` costs a fifth of the same key as a buffer. */
export function aesGcmEncrypt(key: KeyObject, nonce: Buffer, associatedData: Buffer, plaintext: Buffer): Buffer {
  const cipher = createCipheriv("aes-256-gcm", key, nonce, { authTagLength: tagBytes });
  cipher.setAAD(associatedData);
  return Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
}

/** The plaintext, or undefined when the tag does not hold; nothing unauthenticated is handed out. */
export function aesGcmDecrypt(
  key: KeyObject,
  nonce: Buffer,
  associatedData: Buffer,
  sealed: Buffer,
): Buffer | undefined {
  // The tag's length is pinned: left to itself, Node 20 takes tags cut down to four bytes, which can be guessed. Node 26
  // refuses them by default; the pin does not leave it to the version.
  const decipher = createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: tagBytes });
  decipher.setAAD(associatedData);
  const tagStart = Math.max(0, sealed.length - tagBytes);
  const plaintext = decipher.update(sealed.subarray(0, tagStart));
  try {
    decipher.setAuthTag(sealed.subarray(tagStart));
    decipher.final();
    return plaintext;
  } catch {
    plaintext.fill(0);
    return undefined;
  }
}
