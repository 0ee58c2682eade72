// What must hold for any text, field and header whatsoever, over hundreds of thousands of generated cases. The judges of these
// tests are written apart from the code: by a regular expression where it has a parser.
import fc from "fast-check";
import { it } from "vitest";
import { type DestinationRules, judgeDestination, judgeUrl } from "#libs/destination.ts";
import { decodeTargetUrl } from "#libs/encoded-url.ts";
import { judgeRequestHeaders } from "#libs/request-headers.ts";
import { check, hold, holdDenial, timeout } from "../support/properties.ts";

const split = (text: string) => text.split(" ");
const dangerous = [
  ...split(
    "https:// http:// HTTPS:// // / /// \\ \\\\ @ : :443 :8443 :0443 # ? & = ; , . .. ... ./ ../ ..; ..;/ ~ * ! $",
  ),
  ...split("%2e %2E %2f %5c %5C %00 %0d%0a %7f %c2%85 %252e %25 % %4 %zz %u002e %40 %3a %23 %E3%80%82"),
  ...split(
    "api.acme.com API.ACME.COM evil.com a.files.acme.com files.acme.com acme.com.evil.com localhost metadata.google.internal",
  ),
  ...split(
    "127.0.0.1 0x7f.1 0177.1 2130706433 017700000001 [::1] [::ffff:7f00:1] [fe80::1%25eth0] 169.254.169.254 1.1",
  ),
  ...split(
    "xn-- xn--a xn--e1afmkfd é ſ ß İ K ① ② 。 ． ｡ ／ ＠ ： ＃ ？ ａｐｉ аpi {{custom_fields.a}} $a v1 admin user:pw",
  ),
  ..." |\t|\n|\r|\0|\x7f|\u0085|\u00a0|\u00ad|\u200b|\u200d|\u202e|\u2028|\u2066|\u3000|\ufeff|\ufe0f|\ud800|\udc00|\u{e0041}".split(
    "|",
  ),
];
const piece = fc.constantFrom(...dangerous);
const joined = fc.array(piece, { maxLength: 8 }).map((parts) => parts.join(""));
const prefix = fc.constantFrom(
  "",
  "/",
  "/v1/",
  "https://",
  "https://api.acme.com",
  "https://api.acme.com/",
  "https://a.files.acme.com",
);
const plainPath = fc.stringMatching(/^\/[a-z0-9/._~%;=-]{0,12}(?:\?[a-z=&%0-9]{0,8})?$/);
const text = fc.oneof(
  { weight: 4, arbitrary: fc.tuple(prefix, joined).map((parts) => parts.join("")) },
  { weight: 2, arbitrary: fc.tuple(prefix, plainPath).map((parts) => parts.join("")) },
  {
    weight: 1,
    arbitrary: fc.tuple(prefix, fc.string({ unit: "binary", maxLength: 20 })).map((parts) => parts.join("")),
  },
  { weight: 1, arbitrary: fc.webUrl({ withQueryParameters: true, withFragments: true }) },
);

/** Host, port and path as RFC 3986 cuts a URL, without a parser that repairs. */
function cut(url: string): { readonly host: string; readonly port: string; readonly path: string } {
  const [, host = "", port = "443", path = ""] = /^https:\/\/([^/?#:@]*)(?::(\d+))?(\/[^?#]*)?/.exec(url) ?? [];
  return { host, port, path };
}

const authority = (url: string) => /^https:\/\/([^/?#]*)/.exec(url)?.[1]?.toLowerCase() ?? "";
const isName = (host: string) =>
  host.length <= 253 &&
  /^(?:(?!-)[a-z0-9-]{1,63}(?<!-)\.)+(?!-)[a-z0-9-]{1,63}(?<!-)$/.test(host) &&
  !/\.\d+$/.test(host);
const climbs = (path: string) =>
  path
    .replace(/%2e/gi, ".")
    .split(/\/|%2f|%5c|\\/i)
    .some((segment) => [".", ".."].includes(segment.split(";")[0] ?? ""));

const acme: DestinationRules = {
  baseUrl: "https://api.acme.com/v1",
  allowedDomains: ["api.acme.com", "*.files.acme.com"],
};

it("an allowed URL has a listed host, keeps the base path, and resolves to itself", { timeout }, () => {
  check(text, 0.05, (input) => {
    const verdict = judgeDestination(acme, {}, input);
    if (verdict.kind === "deny") {
      holdDenial(verdict);
      return false;
    }
    const { href, username, password, hash } = verdict.url;
    const { host, port, path } = cut(href);
    hold("https, on the default port, with nothing else", port === "443" && username + password + hash === "");
    hold("a listed host", host === "api.acme.com" || (host.endsWith(".files.acme.com") && isName(host)));
    hold("the authority as written", input.startsWith("/") || [host, `${host}:443`].includes(authority(input)));
    hold("the base path", !input.startsWith("/") || href.startsWith("https://api.acme.com/v1/"));
    hold("no way up", !climbs(path));
    hold("printable ASCII of at most 8 KiB", /^[!-~]{1,8192}$/.test(href));
    const again = judgeDestination(acme, {}, href);
    hold("resolve(resolved) = resolved", again.kind === "allow" && again.url.href === href);
    return true;
  });
});

it("a field's value moves neither the host out of the app's domain nor the path above the base", { timeout }, () => {
  const rules = { baseUrl: "https://{{custom_fields.a}}.acme.com/o/{{custom_fields.b}}", allowedDomains: ["evil.com"] };
  const value = fc.oneof(joined, fc.stringMatching(/^[a-zA-Z0-9._~-]{1,10}$/), fc.constantFrom(undefined, 1, null, {}));
  const label = fc.oneof(fc.stringMatching(/^[a-zA-Z0-9-]{1,10}$/), value);
  check(fc.tuple(label, value, fc.oneof(plainPath, text)), 0.02, ([a, b, input]) => {
    const verdict = judgeDestination(rules, { a, b }, input);
    if (verdict.kind === "deny") {
      holdDenial(verdict);
      return false;
    }
    const { host, path } = cut(verdict.url.href);
    hold("one label of the app's domain", host === `${String(a).toLowerCase()}.acme.com` && isName(host));
    hold("the base path", path.startsWith(`/o/${String(b)}/`) && !climbs(path));
    hold("only paths of callers", input.startsWith("/"));
    return true;
  });
});

it("a base URL of an account is a public name over https, and what is joined stays below it", { timeout }, () => {
  const rules = { baseUrl: "{{custom_fields.a}}/api", allowedDomains: ["evil.com"] };
  const base = fc.oneof(
    text,
    fc.stringMatching(/^https:\/\/[a-z]{1,5}\.(?:acme\.com|localhost|internal|co)\/?[a-z]{0,4}$/),
  );
  check(fc.tuple(base, fc.oneof(plainPath, text)), 0.02, ([a, input]) => {
    const verdict = judgeDestination(rules, { a }, input);
    if (verdict.kind === "deny") {
      holdDenial(verdict);
      return false;
    }
    const { host, port, path } = cut(verdict.url.href);
    hold("the account's own host", host === cut(a).host.toLowerCase() && port === "443");
    hold("a public name", isName(host) && !/\.(?:localhost|internal|local|arpa|onion|test)$/.test(host));
    hold("below the base", path.startsWith(new URL(`${a.replace(/\/+$/, "")}/api/`).pathname) && !climbs(path));
    const again = judgeUrl(verdict.url.href);
    hold("resolve(resolved) = resolved", again.kind === "allow" && again.url.href === verdict.url.href);
    return true;
  });
});

it("headers that pass cannot frame, name, authorise or break a message", { timeout }, () => {
  const word = fc.constantFrom(
    ...split(
      "Host Content-Length Transfer-Encoding Connection Proxy-X Sec-Y Cookie Authorization X-Api-Key X-A Accept Te Via",
    ),
  );
  const spelling = fc.tuple(word, fc.boolean(), fc.boolean()).map(([name, upper, folded]) => {
    const spelt = folded ? name.replaceAll("-", "_") : name;
    return upper ? spelt.toUpperCase() : spelt;
  });
  const name = fc.oneof(spelling, fc.stringMatching(/^[A-Za-z-]{1,8}$/), fc.string({ unit: "binary", maxLength: 6 }));
  const value = fc.oneof(fc.stringMatching(/^[ -~\t]{0,12}$/), fc.string({ unit: "binary", maxLength: 8 }), joined);
  const restricted =
    /^(?:host|content-length|transfer-encoding|connection|proxy.*|sec-.*|cookie|authorization|x-api-key|te|via)$/;
  const lists = fc.array(fc.tuple(name, value), { maxLength: 3 });
  check(lists, 0.1, (headers) => {
    const verdict = judgeRequestHeaders(headers, ["Authorization", "X-Api-Key"]);
    if (verdict.kind === "deny") {
      holdDenial(verdict);
      return false;
    }
    const wire = verdict.headers.map(([key, content]) => `${key}: ${content}\r\n`).join("");
    hold("one line each", wire.split("\r\n").length === headers.length + 1 && /^[\t\r\n -~]*$/.test(wire));
    for (const [index, [key, content]] of verdict.headers.entries()) {
      hold("the same header", key === headers[index]?.[0].toLowerCase() && content === headers[index]?.[1]);
      hold("a token", /^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(key));
      hold("a free name", !restricted.test(key.replaceAll("_", "-")));
    }
    return true;
  });
});

it("an encoded URL has the one text that its bytes are, or is refused", { timeout }, () => {
  const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const encoded = fc.oneof(
    text.map((plain) => Buffer.from(plain).toString("base64url")),
    fc.uint8Array({ maxLength: 12 }).map((bytes) => Buffer.from(bytes).toString("base64")),
    fc.stringMatching(/^[A-Za-z0-9+/_=-]{0,10}$/),
    fc.string({ unit: "binary", maxLength: 8 }),
  );
  check(encoded, 0.2, (input) => {
    const verdict = decodeTargetUrl(input);
    if (verdict.kind === "deny") {
      holdDenial(verdict);
      return false;
    }
    const bytes = Buffer.from(verdict.text);
    hold("the text of the bytes", utf8.decode(bytes) === verdict.text);
    hold(
      "the only encoding",
      bytes.toString("base64url") === input.replace(/=+$/, "").replace(/\+/g, "-").replace(/\//g, "_"),
    );
    return true;
  });
});
