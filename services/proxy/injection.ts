// Puts an account's credential into a judged request: last of all, so that nothing the caller wrote can take its place.
// A caller who names an injected header or query parameter is refused, not overridden: whoever reads the refusal knows
// that the proxy does it, and no upstream gets to choose between two values of one name.
import { type Header, judgeRequestHeaders } from "#libs/request-headers.ts";
import { type Denial, malformed } from "#libs/verdict.ts";

/** A name and the secret that goes there. */
export interface InjectedValue {
  readonly name: string;
  readonly value: string;
}

/** What a lease says is to be put in. */
export interface Injection {
  readonly headers: readonly InjectedValue[];
  readonly query: readonly InjectedValue[];
}

/** A request as it goes out. Holds the credential: never logged. */
export interface InjectedRequest {
  readonly kind: "allow";
  readonly url: URL;
  readonly headers: readonly Header[];
}

// Some upstreams refuse requests that do not say who sends them.
const defaultHeaders: readonly Header[] = [["user-agent", "deputy"]];

/** Judges the caller's headers and query beside the injection, and joins them. */
export function injectCredential(url: URL, headers: readonly Header[], injection: Injection): InjectedRequest | Denial {
  const names = injection.headers.map(({ name }) => name);
  const judged = judgeRequestHeaders(headers, names);
  if (judged.kind === "deny") return judged;
  const taken = new Set(injection.query.map(({ name }) => foldParameter(name)));
  for (const name of taken.size === 0 ? [] : parameterNames(url.search)) {
    if (taken.has(foldParameter(name))) {
      return malformed(
        "QUERY_INJECTED",
        "The query has a parameter that carries the account's credential and cannot be set.",
      );
    }
  }
  const present = new Set([...judged.headers.map(([name]) => name), ...names.map((name) => name.toLowerCase())]);
  return {
    kind: "allow",
    url: withQuery(url, injection.query),
    headers: [
      ...defaultHeaders.filter(([name]) => !present.has(name)),
      ...judged.headers,
      ...injection.headers.map(({ name, value }): Header => [name, value]),
    ],
  };
}

// The caller's query stays as it was written, byte for byte: some upstreams sign it or read it in their own way.
function withQuery(url: URL, query: readonly InjectedValue[]): URL {
  if (query.length === 0) return url;
  const added = query.map(({ name, value }) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`);
  const joined = new URL(url);
  joined.search = [...(url.search.length > 1 ? [url.search.slice(1)] : []), ...added].join("&");
  return joined;
}

// `;` separates parameters for some servers, so a name after it counts too.
function parameterNames(search: string): readonly string[] {
  return search
    .replace(/^\?/, "")
    .split(/[&;]/)
    .flatMap((part) => [...new URLSearchParams(part).keys()]);
}

// Servers fold names: letter case, and in PHP leading spaces, `a.b`, `a b` and `a[` to `a_b`; `a[]` and `a[x]` all set `a`.
function foldParameter(name: string): string {
  const [plain = ""] = name.trimStart().split("\0");
  return plain
    .replace(/\[.*\]$/s, "")
    .replace(/[ .[]/g, "_")
    .toLowerCase();
}
