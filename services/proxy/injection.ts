// Puts an account's credential into a judged request: last of all, so that nothing the caller wrote can take its place.
// A caller who names an injected header or query parameter is refused, not overridden: whoever reads the refusal knows
// that the proxy does it, and no upstream gets to choose between two values of one name.
import { type Header, headersJudge } from "#libs/request-headers.ts";
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

/** Puts the credential into one request, or says why it may not be sent. */
export type Inject = (url: URL, headers: readonly Header[]) => InjectedRequest | Denial;

// Some upstreams refuse requests that do not say who sends them.
const userAgent: Header = ["user-agent", "deputy"];

/** Judges callers' headers and queries beside one injection, and joins them: what is the same for all requests is made once. */
export function injector(injection: Injection): Inject {
  const injected = injection.headers.map(({ name, value }): Header => [name, value]);
  const judgeHeaders = headersJudge(injected.map(([name]) => name));
  const namesAgent = ([name]: Header) => name.toLowerCase() === userAgent[0];
  const isAgentInjected = injected.some(namesAgent);
  const taken = new Set(injection.query.map(({ name }) => foldParameter(name)));
  return (url, headers) => {
    const judged = judgeHeaders(headers);
    if (judged.kind === "deny") return judged;
    if (taken.size > 0 && parameterNames(url.search).some((name) => taken.has(foldParameter(name)))) {
      return malformed(
        "QUERY_INJECTED",
        "The query has a parameter that carries the account's credential and cannot be set.",
      );
    }
    const saysAgent = isAgentInjected || judged.headers.some(namesAgent);
    return {
      kind: "allow",
      url: withQuery(url, injection.query),
      headers: [...(saysAgent ? [] : [userAgent]), ...judged.headers, ...injected],
    };
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
