// The canonical encoding of a list of fields as bytes, for what is authenticated, hashed or signed.

const prefixBytes = 4;

/** Each field after its length (u32 big-endian), so that no two lists of fields give the same bytes. */
export function lengthPrefixed(fields: readonly (string | Buffer)[]): Buffer {
  const lengths = fields.map((field) => Buffer.byteLength(field));
  const bytes = Buffer.allocUnsafe(lengths.reduce((sum, length) => sum + prefixBytes + length, 0));
  let at = 0;
  for (const [index, field] of fields.entries()) {
    at = bytes.writeUInt32BE(lengths[index] ?? 0, at);
    at += typeof field === "string" ? bytes.write(field, at) : field.copy(bytes, at);
  }
  return bytes;
}
