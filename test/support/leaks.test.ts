// The search for leaked secrets finds what it must: a search that finds nothing is no proof without it.
import { randomBytes } from "node:crypto";
import { inspect } from "node:util";
import { describe, expect, test } from "vitest";
import { findLeaks, formsOf, leakFinder } from "./leaks.ts";

const secret = 'canary-"%+/\\=& 7f3a9c-ü';
const key = Buffer.from("00ff10a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d", "hex");
const secrets = { text: secret, key };

/** Written by Node itself, between other bytes, at each alignment. */
const written: readonly [string, (bytes: Buffer) => string | Buffer][] = [
  ["plain", (bytes) => bytes],
  ["hex", (bytes) => bytes.toString("hex")],
  ["upper-case hex", (bytes) => bytes.toString("hex").toUpperCase()],
  ["spaced hex", (bytes) => inspect(bytes)],
  ["decimals", (bytes) => JSON.stringify(bytes)],
  ["base64", (bytes) => bytes.toString("base64")],
  ["base64url", (bytes) => bytes.toString("base64url")],
  ["reversed", (bytes) => Buffer.from(bytes).reverse()],
];

describe.each(Object.entries(secrets))("a %s", (name, value) => {
  test.each(written)("in %s is found at each alignment, in text and in bytes", (form, write) => {
    for (const before of [0, 1, 2, 3, 4]) {
      const bytes = Buffer.concat([Buffer.alloc(before, "x"), Buffer.from(value), Buffer.from("yz")]);
      // Where neither has a letter of its own they are the same.
      const reported = form === "base64url" ? /\(base64(url)?\)/ : `(${form})`;
      expect(findLeaks(Buffer.from(write(bytes)), secrets)).toEqual([expect.stringMatching(reported)]);
    }
  });

  test("in base32 is found at each alignment", () => {
    const base32 = (of: string | Buffer) => formsOf(of).filter(({ form }) => form === "base32");
    // RFC 4648, 10.
    expect(base32("foobarbazz").map(({ bytes }) => bytes.toString())).toContain("MZXW6YTBOJRGC6T2");
    for (const { bytes } of base32(value)) expect(findLeaks(`A${bytes}A`, secrets)).toEqual([`${name} (base32)`]);
  });
});

test.each<[string, string | Buffer]>([
  ["url", encodeURIComponent(secret)],
  ["double url", encodeURIComponent(encodeURIComponent(secret))],
  ["form", new URLSearchParams({ code: secret }).toString()],
  ["JSON", JSON.stringify({ token: secret })],
  ["JSON in JSON", JSON.stringify({ body: JSON.stringify({ token: secret }) })],
  ["UTF-16", Buffer.from(`<${secret}>`, "utf16le")],
])("a text in %s is found", (form, text) => {
  expect(findLeaks(text, secrets)).toEqual([`text (${form})`]);
});

test("what a text shows of bytes in hex is looked into", () => {
  const row = `(apn_1,"\\\\x${Buffer.from(`..${Buffer.from(secret).toString("base64")}..`).toString("hex")}")`;
  expect(findLeaks(row, secrets)).toEqual(["text (base64)"]);
});

test("nothing is found in random bytes, nor a secret that is cut short", () => {
  const find = leakFinder(secrets);
  expect(find(randomBytes(4_000_000))).toEqual([]);
  expect(find(secret.slice(1))).toEqual([]);
  expect(find(key.subarray(0, -1))).toEqual([]);
  expect(find("")).toEqual([]);
});

test("a secret is found among hundreds of others that begin alike", () => {
  const many = Object.fromEntries(Array.from({ length: 300 }, (_, index) => [`n${index}`, `sandbox-token-${index}-x`]));
  expect(leakFinder(many)(Buffer.from("... sandbox-token-217-x ..."))).toEqual(["n217 (plain)"]);
});

test("refuses to look for what is too short to be told from chance", () => {
  expect(() => findLeaks("", { pin: "1234567" })).toThrow("pin is too short");
});
