// Where a request may go: from an app's entry, an account's fields and the caller's text to one URL, or to a denial that names
// its rule. Pure; nothing here resolves a name or opens a socket, and nothing throws.
//
// The argument. URL parsers repair: they drop tabs, fold backslashes, turn `0x7f.1` into 127.0.0.1 and `①` into 1. A check on
// the repaired form and a check on the raw form can disagree, and every known bypass lives in that gap. So:
//   1. text that a parser would repair silently is refused before it is parsed (characters, escapes, fragment);
//   2. the authority that the caller wrote must be the authority that the parser found, letter for letter in lower case;
//   3. a host must be a public DNS name in letters, digits and hyphens, and on the app's list;
//   4. a path is joined below the app's base path by plain concatenation, and origin and prefix are asserted again after
//      parsing, so that a fault in the rules before shows up here as a denial.
// What comes out is the only thing that is sent: its `href`, judged again, gives itself.
//
// Callers of apps with placeholders give paths only: a whole URL would send a self-hosted account's credential to the vendor.
// Addresses are judged at each connection (addresses.ts), because what a name resolves to can change after this verdict.
import { hostFault } from "./host-names.ts";
import { expandBaseUrl } from "./templates.ts";
import { type Denial, forbidden, malformed, notReady } from "./verdict.ts";

/** What an app's entry says about its upstream. */
export interface DestinationRules {
  /** `https://api.example.com/v1`, possibly with `{{custom_fields.name}}`. */
  readonly baseUrl: string;
  /** Hosts that whole URLs may name: `api.example.com`, or `*.example.com` for everything below it. */
  readonly allowedDomains: readonly string[];
  readonly proxyEnabled?: boolean;
  /** Beside the scheme's default port. */
  readonly allowedPorts?: readonly number[];
  /** Lets `http:` URLs pass this verdict; the sender still has to agree. */
  readonly plaintextAllowed?: boolean;
  /** `host:port` of the development upstreams: exempt from the host and port rules. Empty in production. */
  readonly exemptTargets?: readonly string[];
}

/** The one URL that may be sent to. */
export interface Destination {
  readonly kind: "allow";
  readonly url: URL;
}

const maxUrlBytes = 8192;

/** Judges what a caller asks for: an absolute URL or a path. */
export type JudgeInput = (input: string) => Destination | Denial;

/** Judges what a caller asked for once. */
export function judgeDestination(
  rules: DestinationRules,
  fields: Readonly<Record<string, unknown>>,
  input: string,
): Destination | Denial {
  return destinationJudge(rules, fields)(input);
}

/** Judges the app's side of it once, for many inputs. */
export function destinationJudge(rules: DestinationRules, fields: Readonly<Record<string, unknown>>): JudgeInput {
  if (rules.proxyEnabled === false) {
    return () => notReady("PROXY_DISABLED", "The proxy is not enabled for this app.");
  }
  const base = expandBaseUrl(rules.baseUrl, fields);
  if (base.kind === "deny") {
    return () => base;
  }
  const judgePath = pathJudge(base.text, rules);
  return (input) => {
    const fault = textFault(input);
    if (fault !== undefined) {
      return fault;
    }
    if (input.startsWith("/")) {
      return judgePath(input);
    }
    if (base.isTemplate) {
      return malformed("PATH_REQUIRED", "This app's host depends on the account: give a path that begins with /.");
    }
    const target = parseTarget(input, rules);
    if (target.kind === "deny" || isListed(target.url.hostname, rules.allowedDomains)) {
      return target;
    }
    return forbidden("HOST_NOT_ALLOWED", `Domain ${target.url.hostname} is not allowed for this app`);
  };
}

/** Judges an app's base URL with an account's fields: when either is saved, and below every path. */
export function judgeBaseUrl(rules: DestinationRules, fields: Readonly<Record<string, unknown>>): Destination | Denial {
  const base = expandBaseUrl(rules.baseUrl, fields);
  return base.kind === "deny" ? base : parseBase(base.text, rules);
}

/** Judges one whole URL that no app's list covers: token endpoints, webhooks. */
export function judgeUrl(
  input: string,
  rules: Pick<DestinationRules, "allowedPorts" | "exemptTargets"> = {},
): Destination | Denial {
  return textFault(input) ?? parseTarget(input, rules);
}

function pathJudge(baseText: string, rules: DestinationRules): JudgeInput {
  const base: Destination | Denial =
    baseText === ""
      ? notReady("BASE_MISSING", "The app has no base URL to put a path below: give a whole URL.")
      : parseBase(baseText, rules);
  const { origin = "", pathname = "" } = base.kind === "allow" ? base.url : {};
  const prefix = pathname.replace(/\/+$/, "");
  return (input) => {
    if (input.startsWith("//")) {
      return malformed("PROTOCOL_RELATIVE", "A path begins with exactly one slash.");
    }
    const fault = base.kind === "deny" ? base : pathFault(pathOf(input));
    if (fault !== undefined) {
      return fault;
    }
    const url = URL.parse(origin + prefix + input);
    if (url === null || url.origin !== origin || !url.pathname.startsWith(`${prefix}/`)) {
      return malformed("BASE_LEFT", "The path leaves the app's base URL.");
    }
    return within(url);
  };
}

function parseBase(text: string, rules: DestinationRules): Destination | Denial {
  const base = textFault(text) ?? parseTarget(text, rules);
  if (base.kind === "allow" && text.includes("?")) {
    return malformed("BASE_HAS_QUERY", "A base URL has no query.");
  }
  return base;
}

// Printable ASCII without the characters that rule 1 is about: nearly all there is, and one look instead of seven.
const plainText = /^[!"$&-[\]-~]+$/;

// Rule 1: text that a parser would repair, or that a person would read as something else.
function textFault(text: string): Denial | undefined {
  if (text === "") {
    return malformed("URL_EMPTY", "Give a URL or a path.");
  }
  if (text.length <= maxUrlBytes && plainText.test(text)) {
    return undefined;
  }
  if (Buffer.byteLength(text) > maxUrlBytes) {
    return malformed("URL_TOO_LONG", `A URL has at most ${maxUrlBytes} bytes.`);
  }
  if (!text.isWellFormed()) {
    return malformed("URL_NOT_UNICODE", "The URL is not well-formed Unicode.");
  }
  if (/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/u.test(text)) {
    return malformed("URL_CONTROL_CHARACTER", "The URL has a control or invisible character: percent-encode it.");
  }
  if (/\p{Zs}/u.test(text)) {
    return malformed("URL_SPACE", "The URL has a raw space: percent-encode it.");
  }
  if (text.includes("\\")) {
    return malformed("URL_BACKSLASH", "The URL has a backslash: use / or percent-encode it.");
  }
  if (text.includes("#")) {
    return malformed("URL_FRAGMENT", "The URL has a fragment, which is never sent: remove it or percent-encode #.");
  }
  if (/%(?![0-9A-Fa-f]{2})/.test(text)) {
    return malformed("URL_ESCAPE", "The URL has a % that is not followed by two hexadecimal digits.");
  }
  return undefined;
}

function parseTarget(
  text: string,
  rules: Pick<DestinationRules, "allowedPorts" | "plaintextAllowed" | "exemptTargets">,
): Destination | Denial {
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):/.exec(text)?.[1];
  const [, authority] = /^[A-Za-z][A-Za-z0-9+.-]*:\/\/([^/?]*)/.exec(text) ?? [];
  if (authority === undefined) {
    return malformed("URL_FORM", "Give https://host/path, or a path that begins with /.");
  }
  if (scheme !== "https" && !(scheme === "http" && rules.plaintextAllowed === true)) {
    return malformed("SCHEME_NOT_ALLOWED", "Only https:// URLs are allowed.");
  }
  const fault = authorityFault(authority);
  if (fault !== undefined) {
    return fault;
  }
  const url = URL.parse(text);
  if (url === null) {
    return malformed("URL_UNPARSABLE", "The URL has no valid host or port.");
  }
  const defaultPort = scheme === "https" ? 443 : 80;
  const written = authority.toLowerCase();
  if (written !== url.host && written !== `${url.host}:${defaultPort}`) {
    return malformed("AUTHORITY_NOT_CANONICAL", "Write the host and port in their plain form.");
  }
  const port = url.port === "" ? defaultPort : Number(url.port);
  const isExempt = rules.exemptTargets?.includes(`${url.hostname}:${port}`) ?? false;
  return (
    (isExempt ? undefined : (hostFault(url.hostname) ?? portFault(port, defaultPort, rules.allowedPorts))) ??
    pathFault(pathOf(text.slice(`${scheme}://${authority}`.length))) ??
    within(url)
  );
}

function authorityFault(authority: string): Denial | undefined {
  if (authority === "") {
    return malformed("HOST_MISSING", "The URL has no host.");
  }
  if (authority.includes("@")) {
    return malformed("USERINFO", "The URL has a user name before the host: remove it.");
  }
  if (authority.includes("%")) {
    return malformed("HOST_ESCAPE", "The host has a percent escape.");
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the range is ASCII as a whole
  if (!/^[\x00-\x7f]*$/.test(authority)) {
    return malformed("HOST_NOT_ASCII", "Write an international host in its xn-- form.");
  }
  return undefined;
}

function portFault(port: number, defaultPort: number, allowedPorts: readonly number[] = []): Denial | undefined {
  return port === defaultPort || allowedPorts.includes(port)
    ? undefined
    : forbidden("PORT_NOT_ALLOWED", `Port ${port} is not allowed for this app.`);
}

// Dots and separators are decoded once, as some upstreams do; `..;` is a dot segment for those that cut path parameters.
function pathFault(path: string): Denial | undefined {
  // Nearly all paths: nothing is encoded, and no segment begins with a dot.
  if (!path.includes("%") && !path.includes("/.") && !path.startsWith(".")) {
    return undefined;
  }
  if (/%(?:[01][0-9a-f]|7f|c2%[89][0-9a-f])/i.test(path)) {
    return malformed("PATH_CONTROL_CHARACTER", "The path has an encoded control character.");
  }
  const decoded = path.replace(/%2e/gi, ".").replace(/%2f|%5c/gi, "/");
  return /(?:^|\/)\.{1,2}(?:;[^/]*)?(?=\/|$)/.test(decoded)
    ? malformed("PATH_DOT_SEGMENT", "The path has a . or .. segment.")
    : undefined;
}

function pathOf(text: string): string {
  const end = text.indexOf("?");
  return end === -1 ? text : text.slice(0, end);
}

// Encoding by the parser makes a URL longer: what is sent must itself pass the rule on length.
function within(url: URL): Destination | Denial {
  return url.href.length > maxUrlBytes
    ? malformed("URL_TOO_LONG", `A URL has at most ${maxUrlBytes} bytes once it is percent-encoded.`)
    : { kind: "allow", url };
}

function isListed(hostname: string, allowedDomains: readonly string[]): boolean {
  return allowedDomains.some((entry) => {
    const domain = entry.toLowerCase();
    return domain.startsWith("*.") ? hostname.endsWith(domain.slice(1)) : hostname === domain;
  });
}
