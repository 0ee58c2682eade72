// Looks for secrets where none may be: in text and in raw bytes, in every form in which a secret is likely to be written by
// accident. Not found: what is compressed (gzip, a database's own compression) or encrypted, which is the point of it.

/** Secrets by the names under which they are reported. */
export type SecretsByName = Readonly<Record<string, string | Buffer>>;

/** What the secrets of tests begin with: tokens and keys of the sandbox, its client's secret, and whatever else a test marks. */
export const secretMarks: SecretsByName = {
  "a token": "sandbox-token-",
  "an API key": "sandbox-key-",
  "the OAuth client's secret": "a secret: with % and +",
  "a marked secret": "canary-secret",
};

const alphabets = {
  base64: "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
  base64url: "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
  base32: "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
} as const;

/** How a secret may look, and the name of the encoding. What looks the same in two of them is named by the first. */
export function formsOf(secret: string | Buffer): readonly { readonly form: string; readonly bytes: Buffer }[] {
  const bytes = Buffer.from(secret);
  const hex = bytes.toString("hex");
  const forms = {
    plain: [bytes],
    hex: [hex],
    "upper-case hex": [hex.toUpperCase()],
    // What Node prints of a buffer, and what JSON makes of one.
    "spaced hex": [hex.replace(/..(?!$)/g, "$& ")],
    decimals: [bytes.join(",")],
    base64: alignedForms(bytes, alphabets.base64),
    base64url: alignedForms(bytes, alphabets.base64url),
    base32: alignedForms(bytes, alphabets.base32),
    reversed: [Buffer.from(bytes).reverse()],
    ...(typeof secret === "string" && textFormsOf(secret)),
  };
  const all = Object.entries(forms).flatMap(([form, written]) =>
    written.map((text) => ({ form, bytes: Buffer.from(text) })),
  );
  return [...new Map(all.reverse().map((one) => [one.bytes.toString("latin1"), one])).values()];
}

function textFormsOf(secret: string): Readonly<Record<string, readonly (string | Buffer)[]>> {
  const url = encodeURIComponent(secret);
  const json = JSON.stringify(secret).slice(1, -1);
  return {
    url: [url],
    "double url": [encodeURIComponent(url)],
    form: [new URLSearchParams([["", secret]]).toString().slice(1)],
    JSON: [json],
    "JSON in JSON": [JSON.stringify(json).slice(1, -1)],
    "UTF-16": [Buffer.from(secret, "utf16le")],
  };
}

/** In the middle of other bytes a secret can begin at any bit of a letter: those that hold bits of its neighbours are left out. */
function alignedForms(bytes: Buffer, alphabet: string): readonly string[] {
  const width = Math.log2(alphabet.length);
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  return Array.from({ length: width === 6 ? 3 : 5 }, (_, bytesBefore) => {
    const foreign = (width - ((8 * bytesBefore) % width)) % width;
    const groups = bits.slice(foreign).match(new RegExp(`.{${width}}`, "g")) ?? [];
    return groups.map((group) => alphabet[Number.parseInt(group, 2)]).join("");
  });
}

/** Which secrets, in which forms, a text or some bytes give away. In a text, runs of hex are looked into as well. */
export function findLeaks(place: string | Buffer, secrets: SecretsByName): readonly string[] {
  return leakFinder(secrets)(place);
}

interface Pattern {
  readonly bytes: Buffer;
  readonly leak: string;
}

/**
 * `findLeaks` for many places: one pass over the bytes, however many the secrets, at about 200 MB/s. What begins with four
 * bytes that no pattern begins with, which is nearly everything, costs one look into a table.
 */
export function leakFinder(secrets: SecretsByName): (place: string | Buffer) => readonly string[] {
  const byStart = new Map<number, Pattern[]>();
  const mayStart = new Uint8Array(65_536);
  for (const [name, secret] of Object.entries(secrets)) {
    if (secret.length < 8) throw new Error(`${name} is too short to be looked for`);
    for (const { form, bytes } of formsOf(secret)) {
      const start = bytes.readInt32LE();
      byStart.set(start, [...(byStart.get(start) ?? []), { bytes, leak: `${name} (${form})` }]);
      mayStart[fold(start)] = 1;
    }
  }

  function search(bytes: Buffer, found: Set<string>): void {
    let start = 0;
    for (let end = 0; end < bytes.length; end += 1) {
      start = (start >>> 8) | ((bytes[end] ?? 0) << 24);
      if (mayStart[fold(start)] === 0) continue;
      for (const { bytes: pattern, leak } of byStart.get(start) ?? []) {
        if (!found.has(leak) && bytes.subarray(end - 3, end - 3 + pattern.length).equals(pattern)) found.add(leak);
      }
    }
  }

  return (place) => {
    const found = new Set<string>();
    search(Buffer.from(place), found);
    if (typeof place === "string") search(bytesInHex(place), found);
    return [...found];
  };
}

function fold(start: number): number {
  return (start ^ (start >>> 16)) & 0xffff;
}

function bytesInHex(text: string): Buffer {
  return Buffer.concat([...text.matchAll(/(?:[0-9a-f]{2}){8,}/gi)].map(([run]) => Buffer.from(run, "hex")));
}
