// Looks for secrets where none may be: in text and in the bytes of hexadecimal runs, in every form in which a secret is
// likely to be written by accident.

/** How a secret may look: as it is, in hex, in base64 at each of its three alignments, in a URL, in JSON. */
export function formsOf(secret: string): readonly string[] {
  const bytes = Buffer.from(secret);
  const aligned = [0, 1, 2].map((shift) => {
    const encoded = Buffer.concat([Buffer.alloc(shift), bytes]).toString("base64");
    // Letters at both ends hold bits of the neighbours.
    return encoded.slice(shift === 0 ? 0 : shift + 1, -4);
  });
  const urlSafe = aligned.map((text) => text.replaceAll("+", "-").replaceAll("/", "_"));
  const hex = bytes.toString("hex");
  return [
    ...new Set([
      secret,
      hex,
      hex.toUpperCase(),
      ...aligned,
      ...urlSafe,
      encodeURIComponent(secret),
      JSON.stringify(secret).slice(1, -1),
    ]),
  ];
}

/** The secrets, by their names, that a text gives away. */
export function findLeaks(text: string, secrets: Readonly<Record<string, string>>): readonly string[] {
  const bytes = [...text.matchAll(/(?:[0-9a-f]{2}){8,}/g)].map(([run]) => Buffer.from(run, "hex").toString("latin1"));
  const haystack = [text, ...bytes].join("\n");
  return Object.entries(secrets).flatMap(([name, secret]) => {
    if (secret.length < 8) throw new Error(`${name} is too short to be looked for`);
    return formsOf(secret).some((form) => haystack.includes(form)) ? [name] : [];
  });
}
