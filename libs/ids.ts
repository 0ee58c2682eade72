// Ids and random texts. An id is a prefix that names its kind and 22 letters and digits: 131 bits, so it can be neither
// guessed nor made twice.
import { createHash, randomBytes, randomUUID } from "node:crypto";

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/** The kinds of things that have ids. */
export type IdPrefix =
  | "proj"
  | "cli"
  | "exu"
  | "apn"
  | "oa"
  | "oac"
  | "aov"
  | "con"
  | "cct"
  | "rev"
  | "int"
  | "prx"
  | "wat"
  | "aud"
  | "evt"
  | "whk";

// Drawn together: a draw for each id costs more than the rest of it.
let drawn = Buffer.alloc(0);
let used = 0;

/** Makes an id like `apn_4fK0...`. */
export function newId(prefix: IdPrefix): string {
  let id = "";
  while (id.length < 22) {
    if (used === drawn.length) [drawn, used] = [randomBytes(2048), 0];
    const byte = drawn[used++] as number;
    // 248 is the largest multiple of 62 in a byte: the bytes above it would favour some letters.
    if (byte < 248) id += alphabet[byte % 62];
  }
  return `${prefix}_${id}`;
}

/** A random text of 256 bits, base64url: states, client secrets. */
export function randomText(): string {
  return randomBytes(32).toString("base64url");
}

/** The caller's request id when it is a sound one, else a new one. It is logged and passed on, so not any text will do. */
export function soundRequestId(given: unknown): string {
  return typeof given === "string" && /^[\w.:-]{8,100}$/.test(given) ? given : randomUUID();
}

/** SHA-256, by which secrets of 128 bits and more are stored and looked up. */
export function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
