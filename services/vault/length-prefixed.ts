// The canonical encoding of a list of fields as bytes, for what is authenticated, hashed or signed.

/** Each field after its length (u32 big-endian), so that no two lists of fields give the same bytes. */
export function lengthPrefixed(fields: readonly (string | Buffer)[]): Buffer {
  return Buffer.concat(
    fields.flatMap((field) => {
      const bytes = typeof field === "string" ? Buffer.from(field) : field;
      const length = Buffer.alloc(4);
      length.writeUInt32BE(bytes.length);
      return [length, bytes];
    }),
  );
}
