// What of an upstream's header block is passed on. Hop-by-hop headers end here, also those that `Connection` names; cookies
// too: they would make accounts of one project share a session. Ambiguous framing, folded lines and control characters do not
// come this far: the HTTP client's parser refuses them, and the tests of egress.ts hold it to that.
import { EgressError } from "./egress-error.ts";
import type { Header } from "./request-headers.ts";

/** Status and headers of an answer, names in lower case, in the order of the wire. */
export interface AnswerHeaders {
  readonly status: number;
  readonly headers: readonly Header[];
}

const droppedNames: ReadonlySet<string> = new Set([
  "connection",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authentication-info",
  "proxy-authorization",
  "proxy-connection",
  "set-cookie",
  "set-cookie2",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
]);

/** Reads a raw header block: name, value, name, value. Throws an EgressError of the kind `malformed`. */
export function readAnswerHeaders(status: number, raw: unknown): AnswerHeaders {
  if (status === 101 || status < 100 || status > 599) {
    throw malformedAnswer(status === 101 ? "an unasked-for change of protocol" : "a status outside 100 to 599");
  }
  return { status, headers: readFields(raw) };
}

/** Reads a raw block of headers or trailers, and leaves out what ends here. */
export function readFields(raw: unknown): readonly Header[] {
  const block = Array.isArray(raw) ? raw : [];
  const kept: Header[] = [];
  const named: string[] = [];
  for (let index = 0; index + 1 < block.length; index += 2) {
    const name = textOf(block[index]).toLowerCase();
    const value = textOf(block[index + 1]);
    if (name === "connection")
      named.push(
        ...value
          .toLowerCase()
          .split(",")
          .map((part) => part.trim()),
      );
    else if (!droppedNames.has(name)) kept.push([name, value]);
  }
  return named.length === 0 ? kept : kept.filter(([name]) => !named.includes(name));
}

function malformedAnswer(what: string): EgressError {
  return new EgressError("malformed", `The upstream's answer has ${what}.`, true);
}

// Header bytes beyond ASCII have no agreed meaning: Latin-1 keeps each of them as it was.
function textOf(part: unknown): string {
  return Buffer.isBuffer(part) ? part.toString("latin1") : String(part);
}
