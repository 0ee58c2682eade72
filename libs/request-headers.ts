// Which headers a caller may send upstream. A header that frames the message, names the host, speaks for a browser or carries
// the injected credential is refused by name; nothing is dropped in silence. `_` counts as `-`, for many servers fold the two.
import { type Denial, malformed } from "./verdict.ts";

/** A header as name and value. */
export type Header = readonly [name: string, value: string];

const maxHeaders = 64;
const maxHeaderBytes = 8192;

const restrictedNames = new Set([
  "accept-encoding",
  "access-control-request-headers",
  "access-control-request-method",
  "connection",
  "content-length",
  "cookie",
  "date",
  "dnt",
  "expect",
  "host",
  "http2-settings",
  "keep-alive",
  "note",
  "origin",
  "permissions-policy",
  // CGI programs would take it for their HTTP_PROXY.
  "proxy",
  "referer",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "via",
]);

const restrictedPrefixes = ["proxy-", "sec-"];

/** The headers with their names in lower case, or why they may not be sent. */
export type HeadersVerdict = { readonly kind: "allow"; readonly headers: readonly Header[] } | Denial;

/** Judges a caller's headers once. */
export function judgeRequestHeaders(headers: readonly Header[], injectedNames: readonly string[]): HeadersVerdict {
  return headersJudge(injectedNames)(headers);
}

/** Judges the headers of many requests into which the same names are injected. */
export function headersJudge(injectedNames: readonly string[]): (headers: readonly Header[]) => HeadersVerdict {
  const injected = new Set(injectedNames.map(foldName));
  return (headers) => {
    if (headers.length > maxHeaders) {
      return malformed("TOO_MANY_HEADERS", `A request has at most ${maxHeaders} headers.`);
    }
    const judged: Header[] = [];
    for (const [name, value] of headers) {
      const fault = headerFault(name, value, injected);
      if (fault !== undefined) {
        return fault;
      }
      judged.push([name.toLowerCase(), value]);
    }
    return { kind: "allow", headers: judged };
  };
}

function headerFault(name: string, value: string, injected: ReadonlySet<string>): Denial | undefined {
  if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name)) {
    // A faulty name is cut and loses what is not printable, so that it cannot break a line of a log or fill it.
    return malformed("HEADER_NAME", `"${name.slice(0, 64).replace(/[^ -~]/g, "?")}" is not a header name.`);
  }
  if (name.length + value.length > maxHeaderBytes) {
    return malformed("HEADER_TOO_LONG", `Header ${name.slice(0, 64)} is longer than ${maxHeaderBytes} bytes.`);
  }
  const folded = foldName(name);
  if (restrictedNames.has(folded) || restrictedPrefixes.some((prefix) => folded.startsWith(prefix))) {
    return malformed("HEADER_RESTRICTED", `Header ${name} is restricted and cannot be set.`);
  }
  if (injected.has(folded)) {
    return malformed("HEADER_INJECTED", `Header ${name} carries the account's credential and cannot be set.`);
  }
  return /^[\t\x20-\x7e]*$/.test(value)
    ? undefined
    : malformed("HEADER_VALUE", `Header ${name} has a value with characters other than printable ASCII and tab.`);
}

function foldName(name: string): string {
  return name.toLowerCase().replaceAll("_", "-");
}
