// The envelope against published vectors, its own frozen vectors, and everything that can be changed in a stored row.
import { createSecretKey, type KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import {
  aesGcmDecrypt,
  aesGcmEncrypt,
  hkdfSha512,
  newDataKey,
  open,
  type SealContext,
  seal,
  unwrapDataKey,
  type WrapContext,
  wrapDataKey,
} from "../../services/vault/envelope.ts";

const context: SealContext = {
  purpose: "credential",
  schema: "oauth2/v1",
  projectId: "proj_1",
  environment: "production",
  externalUserId: "user-42",
  accountId: "apn_1",
  appSlug: "github",
  dataKeyId: "dk_1",
  generation: 7n,
};
const wrapContext: WrapContext = { kekId: "kek_1", dataKeyId: "dk_1", accountId: "apn_1" };
const plaintext = Buffer.from('{"access_token":"at","refresh_token":"rt"}');

/** Every field of the context changed, one at a time. */
const otherContexts: readonly [string, SealContext][] = [
  ["purpose", { ...context, purpose: "revocation" }],
  ["schema", { ...context, schema: "oauth2/v2" }],
  ["projectId", { ...context, projectId: "proj_2" }],
  ["environment", { ...context, environment: "development" }],
  ["externalUserId", { ...context, externalUserId: "user-43" }],
  ["accountId", { ...context, accountId: "apn_2" }],
  ["appSlug", { ...context, appSlug: "gitlab" }],
  ["dataKeyId", { ...context, dataKeyId: "dk_2" }],
  ["generation", { ...context, generation: 8n }],
];

/** "OPENED", or the reason of the refusal; any other error than DATA_LOSS fails the test. */
function outcome(attempt: () => unknown): string {
  try {
    attempt();
    return "OPENED";
  } catch (error) {
    if (error instanceof StatusError && error.code === "DATA_LOSS") return error.reason;
    throw error;
  }
}

function key(hex: string): KeyObject {
  return createSecretKey(Buffer.from(hex, "hex"));
}

function readVectors(path: string): unknown {
  return JSON.parse(readFileSync(new URL(`../vectors/${path}`, import.meta.url), "utf8"));
}

/** A copy with one bit of one byte inverted. */
function flipped(bytes: Buffer, index: number, bit: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[index] = (copy[index] ?? 0) ^ (1 << bit);
  return copy;
}

interface WycheproofFile<Vector> {
  readonly testGroups: readonly { readonly tests: readonly ({ tcId: number; result: string } & Vector)[] }[];
}

describe("published vectors", () => {
  test("AES-256-GCM gives Wycheproof's ciphertexts and refuses its forgeries", () => {
    const file = readVectors("wycheproof/aes_gcm_test.json") as WycheproofFile<
      Record<"key" | "iv" | "aad" | "msg" | "ct" | "tag", string>
    >;
    const vectors = file.testGroups.flatMap((group) => group.tests);
    expect(vectors.length).toBe(66);
    for (const vector of vectors) {
      const [nonce, aad, message] = [vector.iv, vector.aad, vector.msg].map((hex) => Buffer.from(hex, "hex")) as [
        Buffer,
        Buffer,
        Buffer,
      ];
      const sealed = vector.ct + vector.tag;
      const encrypted = aesGcmEncrypt(key(vector.key), nonce, aad, message).toString("hex");
      const decrypted = aesGcmDecrypt(key(vector.key), nonce, aad, Buffer.from(sealed, "hex"))?.toString("hex");
      const valid = vector.result === "valid";
      expect(encrypted === sealed, `vector ${vector.tcId}: encryption`).toBe(valid);
      expect(decrypted, `vector ${vector.tcId}: decryption`).toBe(valid ? vector.msg : undefined);
    }
  });

  test("HKDF-SHA-512 gives Wycheproof's output and refuses an output that is too long", () => {
    const file = readVectors("wycheproof/hkdf_sha512_test.json") as WycheproofFile<
      Record<"ikm" | "salt" | "info" | "okm", string> & { size: number }
    >;
    const vectors = file.testGroups.flatMap((group) => group.tests);
    expect(vectors.length).toBe(83);
    for (const { tcId, result, ikm, salt, info, size, okm } of vectors) {
      const derive = () =>
        hkdfSha512(key(ikm), Buffer.from(salt, "hex"), Buffer.from(info, "hex"), size).toString("hex");
      if (result === "valid") expect(derive(), `vector ${tcId}`).toBe(okm);
      else expect(derive, `vector ${tcId}`).toThrow();
    }
  });
});

describe("frozen vectors", () => {
  const vectors = readVectors("envelope.json") as {
    blobs: { name: string; dataKey: string; context: SealContext; plaintext: string; blob: string }[];
    wrappedDataKeys: { kek: string; context: WrapContext; dataKey: string; wrappedDataKey: string }[];
  };

  test.each(vectors.blobs)("still opens $name", ({ dataKey, context: stored, plaintext: expected, blob }) => {
    const row = { ...stored, generation: BigInt(stored.generation) };
    expect(open(key(dataKey), row, Buffer.from(blob, "hex")).toString("hex")).toBe(expected);
  });

  test.each(vectors.wrappedDataKeys)("still unwraps data key $context.dataKeyId", (vector) => {
    const unwrapped = unwrapDataKey(key(vector.kek), vector.context, Buffer.from(vector.wrappedDataKey, "hex"));
    expect(unwrapped.export().toString("hex")).toBe(vector.dataKey);
  });

  test("there are vectors of every purpose", () => {
    const purposes = vectors.blobs.map((vector) => vector.context.purpose);
    expect(new Set(purposes)).toEqual(new Set(["credential", "oauth-client", "authorization", "revocation", "spool"]));
    expect(vectors.wrappedDataKeys.length).toBe(3);
  });
});

describe("a sealed blob", () => {
  const dataKey = newDataKey();
  const blob = seal(dataKey, context, plaintext);

  test("opens for its row, and shows nothing of the plaintext", () => {
    expect(open(dataKey, context, blob)).toEqual(plaintext);
    expect(blob.length).toBe(2 + 32 + 32 + 12 + plaintext.length + 16);
    expect(blob.includes("token")).toBe(false);
  });

  test("never repeats its salt, commitment, nonce or ciphertext", () => {
    const again = seal(dataKey, context, plaintext);
    for (const [start, end] of [
      [2, 34],
      [34, 66],
      [66, 78],
      [78, blob.length],
    ] as const) {
      expect(again.subarray(start, end).equals(blob.subarray(start, end))).toBe(false);
    }
  });

  test("is refused for any bit flipped, with the reason of its part", () => {
    for (let index = 0; index < blob.length; index++) {
      const reason = index < 2 ? "UNKNOWN_VERSION" : index < 66 ? "WRONG_KEY" : "TAMPERED";
      for (let bit = 0; bit < 8; bit++) {
        const reached = outcome(() => open(dataKey, context, flipped(blob, index, bit)));
        expect(reached, `byte ${index}, bit ${bit}`).toBe(reason);
      }
    }
  });

  test("is refused at every shorter length, a cut tag included, and with bytes added", () => {
    for (let length = 0; length < blob.length; length++) {
      const reason = length < 2 + 32 + 32 + 12 + 16 ? "TRUNCATED" : "TAMPERED";
      expect(
        outcome(() => open(dataKey, context, blob.subarray(0, length))),
        `${length} bytes`,
      ).toBe(reason);
    }
    expect(outcome(() => open(dataKey, context, Buffer.concat([blob, Buffer.alloc(1)])))).toBe("TAMPERED");
  });

  test("is refused under another data key", () => {
    expect(outcome(() => open(newDataKey(), context, blob))).toBe("WRONG_KEY");
  });

  test("is refused when it would decrypt but does not commit to the key", () => {
    const forged = Buffer.concat([blob.subarray(0, 34), Buffer.alloc(32, 1), blob.subarray(66)]);
    expect(outcome(() => open(dataKey, context, forged))).toBe("WRONG_KEY");
  });

  test("has its commitment judged before its ciphertext", () => {
    const broken = flipped(flipped(blob, 40, 0), blob.length - 1, 0);
    expect(outcome(() => open(dataKey, context, broken))).toBe("WRONG_KEY");
  });

  test("has a table of changed rows that covers every field", () => {
    expect(otherContexts.map(([field]) => field)).toEqual(Object.keys(context));
  });

  test.each(otherContexts)("is refused for a row with another %s", (_field, row) => {
    expect(outcome(() => open(dataKey, row, blob))).toBe("TAMPERED");
  });

  test("is refused when a character moves from one field to the next", () => {
    const shifted = { ...context, projectId: "proj_", environment: "1production" };
    expect(outcome(() => open(dataKey, shifted, blob))).toBe("TAMPERED");
  });

  test("opens in no other row of the table, even where rows share a data key", () => {
    const rows = [context, ...otherContexts.map(([, row]) => row)];
    const blobs = rows.map((row) => seal(dataKey, row, plaintext));
    for (const [i, row] of rows.entries()) {
      for (const [j, stored] of blobs.entries()) {
        expect(
          outcome(() => open(dataKey, row, stored)),
          `blob ${j} in row ${i}`,
        ).toBe(i === j ? "OPENED" : "TAMPERED");
      }
    }
  });

  test("takes every generation of 64 bits and no other", () => {
    const largest = { ...context, generation: 2n ** 64n - 1n };
    expect(open(dataKey, largest, seal(dataKey, largest, plaintext))).toEqual(plaintext);
    expect(() => seal(dataKey, { ...context, generation: 2n ** 64n }, plaintext)).toThrow(RangeError);
    expect(() => seal(dataKey, { ...context, generation: -1n }, plaintext)).toThrow(RangeError);
  });

  test("takes an empty plaintext", () => {
    expect(open(dataKey, context, seal(dataKey, context, Buffer.alloc(0)))).toEqual(Buffer.alloc(0));
  });
});

describe("the cipher", () => {
  test("takes no tag shorter than 16 bytes, though its first bytes are right", () => {
    const nonce = Buffer.alloc(12);
    const tag = aesGcmEncrypt(newDataKeyOf(1), nonce, Buffer.from("row"), Buffer.alloc(0));
    expect(aesGcmDecrypt(newDataKeyOf(1), nonce, Buffer.from("row"), tag)).toEqual(Buffer.alloc(0));
    for (let length = 0; length < 16; length++) {
      const cut = aesGcmDecrypt(newDataKeyOf(1), nonce, Buffer.from("row"), tag.subarray(0, length));
      expect(cut, `${length} bytes`).toBeUndefined();
    }
  });
});

describe("a wrapped data key", () => {
  const kek = newDataKey();
  const dataKey = newDataKey();
  const wrapped = wrapDataKey(kek, wrapContext, dataKey);

  test("unwraps to the same key", () => {
    expect(wrapped.length).toBe(2 + 12 + 32 + 16);
    expect(unwrapDataKey(kek, wrapContext, wrapped).equals(dataKey)).toBe(true);
  });

  test("is refused for any bit flipped, any byte cut off or added, and under another key", () => {
    for (let index = 0; index < wrapped.length; index++) {
      for (let bit = 0; bit < 8; bit++) {
        const reached = outcome(() => unwrapDataKey(kek, wrapContext, flipped(wrapped, index, bit)));
        expect(reached, `byte ${index}, bit ${bit}`).toBe(index < 2 ? "UNKNOWN_VERSION" : "TAMPERED");
      }
      expect(outcome(() => unwrapDataKey(kek, wrapContext, wrapped.subarray(0, index)))).toBe("TRUNCATED");
    }
    expect(outcome(() => unwrapDataKey(kek, wrapContext, Buffer.concat([wrapped, Buffer.alloc(1)])))).toBe("TAMPERED");
    expect(outcome(() => unwrapDataKey(newDataKey(), wrapContext, wrapped))).toBe("TAMPERED");
  });

  test.each(Object.keys(wrapContext))("is refused for another %s", (field) => {
    expect(outcome(() => unwrapDataKey(kek, { ...wrapContext, [field]: "other" }, wrapped))).toBe("TAMPERED");
  });
});

/** A key whose 32 bytes are all the same: where a test needs one key twice. */
function newDataKeyOf(byte: number): KeyObject {
  return createSecretKey(Buffer.alloc(32, byte));
}
