// The rules beyond the vectors, and the properties that must hold for any text whatsoever.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type DestinationRules, judgeBaseUrl, judgeDestination, judgeUrl } from "#libs/destination.ts";

const acme: DestinationRules = {
  baseUrl: "https://api.acme.com/v1",
  allowedDomains: ["api.acme.com", "*.files.acme.com"],
};
const selfHosted: DestinationRules = { baseUrl: "{{custom_fields.base}}/api", allowedDomains: ["acme.com"] };

function answer(rules: DestinationRules, input: string, fields: Record<string, unknown> = {}): string {
  const verdict = judgeDestination(rules, fields, input);
  return verdict.kind === "allow" ? verdict.url.href : verdict.rule;
}

describe("judgeDestination", () => {
  it.each([
    ["https://API.acme.com/X", "https://api.acme.com/X"],
    ["https://api.acme.com:443/x", "https://api.acme.com/x"],
    ["https://api.acme.com?q=1", "https://api.acme.com/?q=1"],
    ["HTTPS://api.acme.com/", "SCHEME_NOT_ALLOWED"],
    ["https:/api.acme.com/", "URL_FORM"],
    ["https://files.acme.com/", "HOST_NOT_ALLOWED"],
    ["https://a.b.files.acme.com/", "https://a.b.files.acme.com/"],
    ["https://api.acme.com/a/../b", "PATH_DOT_SEGMENT"],
    ["https://api.acme.com./", "HOST_TRAILING_DOT"],
    ["/a/..;/admin", "PATH_DOT_SEGMENT"],
    ["/a/%2e%2e;x=1/admin", "PATH_DOT_SEGMENT"],
    ["/..?x", "PATH_DOT_SEGMENT"],
    ["/a/.../b", "https://api.acme.com/v1/a/.../b"],
    ["/?q=../..", "https://api.acme.com/v1/?q=../.."],
    ["/a%00", "PATH_CONTROL_CHARACTER"],
    ["/a%C2%85", "PATH_CONTROL_CHARACTER"],
    ["/a\u00a0b", "URL_SPACE"],
    ["/a\u200db", "URL_CONTROL_CHARACTER"],
    ["https://api.acme.com:443:443/", "URL_UNPARSABLE"],
    ["https://api.acme.com:+443/", "URL_UNPARSABLE"],
    ["https://api.acme.com:\u0664\u0664\u0663/", "HOST_NOT_ASCII"],
    ["https://slac\u212a.acme.com/", "HOST_NOT_ASCII"],
    ["https://xn--.acme.com/", "HOST_NOT_A_NAME"],
    ["https://a.0x1/", "URL_UNPARSABLE"],
    ["https://foo.09/", "URL_UNPARSABLE"],
    ["https://[::1]:443/", "IP_LITERAL"],
    ["https://[::ffff:7f00:1]/", "IP_LITERAL"],
    ["https://[64:ff9b::7f00:1]/", "IP_LITERAL"],
    ["https://[2002:7f00:1::]/", "IP_LITERAL"],
    ["https://[::127.0.0.1]/", "AUTHORITY_NOT_CANONICAL"],
    ["https://kubernetes.default.svc/", "HOST_SPECIAL_USE"],
    ["https://x.LOCAL/", "HOST_SPECIAL_USE"],
    ["https://api.acme.com/\u00ad", "URL_CONTROL_CHARACTER"],
    ["https://api.acme.com/\u{e0041}", "URL_CONTROL_CHARACTER"],
    ["https://api.acme.com/\u2066", "URL_CONTROL_CHARACTER"],
    ["/a%2f..%2fb", "PATH_DOT_SEGMENT"],
    ["/..%2f..", "PATH_DOT_SEGMENT"],
    ["/%252e%252e%252fadmin", "https://api.acme.com/v1/%252e%252e%252fadmin"],
    ["/%2f%2fevil.com", "https://api.acme.com/v1/%2f%2fevil.com"],
    ["/%u0041", "URL_ESCAPE"],
    ["/x?y=%00", "https://api.acme.com/v1/x?y=%00"],
    [`/${"a".repeat(8192)}`, "URL_TOO_LONG"],
    [`/${"é".repeat(3000)}`, "URL_TOO_LONG"],
  ])("%s gives %s", (input, expected) => {
    expect(answer(acme, input)).toBe(expected);
  });

  it("puts a path below no base that the app does not have", () => {
    expect(answer({ ...acme, baseUrl: "" }, "/x")).toBe("BASE_MISSING");
    expect(answer({ ...acme, baseUrl: "" }, "https://api.acme.com/x")).toBe("https://api.acme.com/x");
  });

  it("names the host in the refusal, as existing clients expect", () => {
    expect(judgeDestination(acme, {}, "https://evil.com/?token=1")).toMatchObject({
      message: "Domain evil.com is not allowed for this app",
    });
  });

  it("keeps the prefix whole: a base path is a folder, not a beginning of letters", () => {
    expect(answer({ ...acme, baseUrl: "https://api.acme.com/v1/" }, "/2/x")).toBe("https://api.acme.com/v1/2/x");
  });

  it("exempts a listed development target from host and port rules, and only that one", () => {
    const rules = { baseUrl: "https://127.0.0.1:9443", allowedDomains: [], exemptTargets: ["127.0.0.1:9443"] };
    expect(answer(rules, "/x")).toBe("https://127.0.0.1:9443/x");
    expect(answer({ ...rules, exemptTargets: ["127.0.0.1:9444"] }, "/x")).toBe("IP_LITERAL");
    expect(answer(rules, "https://127.0.0.1:9443/x")).toBe("HOST_NOT_ALLOWED");
  });

  it("judges the account's base URL as strictly as a caller's URL", () => {
    expect(answer(selfHosted, "/x", { base: "https://git.acme.com/" })).toBe("https://git.acme.com/api/x");
    expect(answer(selfHosted, "/x", { base: "https://git.acme.com/%2e%2e" })).toBe("PATH_DOT_SEGMENT");
    expect(answer(selfHosted, "/x", { base: "https://git.acme.com?x=" })).toBe("BASE_HAS_QUERY");
    expect(answer(selfHosted, "/x", { base: "https://user@git.acme.com" })).toBe("USERINFO");
    expect(answer({ ...acme, baseUrl: "https://{{custom_fields.base}}@acme.com" }, "/x", { base: "u" })).toBe(
      "USERINFO",
    );
    expect(judgeBaseUrl(selfHosted, { base: "https://localhost" })).toMatchObject({ rule: "HOST_SINGLE_LABEL" });
  });
});

describe("judgeUrl", () => {
  it("asks of token endpoints what it asks of apps, without a list", () => {
    expect(judgeUrl("https://login.acme.com/token")).toMatchObject({ kind: "allow" });
    expect(judgeUrl("https://10.0.0.1/token")).toMatchObject({ rule: "IP_LITERAL" });
    expect(judgeUrl("https://login.acme.com:8443/")).toMatchObject({ rule: "PORT_NOT_ALLOWED" });
  });
});

const piece = fc.constantFrom(
  ..."https:// http:// / // /// \\ @ : # ? & = %2e %2F %5c .. . ; %00 % %25 api.acme.com evil.com 127.0.0.1 0x7f.1".split(
    " ",
  ),
  ..."[::1] a.files.acme.com v1 admin :443 :8443 é ① 。 ／ {{custom_fields.base}} a\t \n ~ | ^ ' \" < { } xn--a".split(
    " ",
  ),
  " ",
  "\u200b",
  "\ud800",
);
const pieces = fc.array(piece, { maxLength: 10 }).map((parts) => parts.join(""));
const anyText = fc.oneof(
  pieces,
  pieces.map((text) => `https://api.acme.com${text}`),
  pieces.map((text) => `/${text}`),
  fc.string({ unit: "binary", maxLength: 60 }),
  fc.string({ maxLength: 60 }).map((text) => `/${text}`),
);

describe("for any text", () => {
  it("an allowed URL is https, on a listed host, on the default port and idempotent", () => {
    let allowed = 0;
    fc.assert(
      fc.property(anyText, (input) => {
        const verdict = judgeDestination(acme, {}, input);
        if (verdict.kind === "deny") {
          expect(verdict.rule).toMatch(/^[A-Z_]+$/);
          return;
        }
        allowed += 1;
        const { url } = verdict;
        expect([url.protocol, url.port, url.username, url.password, url.hash]).toEqual(["https:", "", "", "", ""]);
        expect(url.hostname).toMatch(/^api\.acme\.com$|\.files\.acme\.com$/);
        if (input.startsWith("/")) {
          expect(url.href.startsWith("https://api.acme.com/v1/")).toBe(true);
        }
        expect(answer(acme, url.href)).toBe(url.href);
      }),
      { numRuns: 5000 },
    );
    // A generator that never gets through would prove nothing.
    expect(allowed).toBeGreaterThan(200);
  });

  it("a field's value never moves the host out of the app's domain or the path above the base", () => {
    const rules = { baseUrl: "https://{{custom_fields.a}}.acme.com/o/{{custom_fields.b}}", allowedDomains: [] };
    let allowed = 0;
    const value = fc.oneof(anyText, fc.stringMatching(/^[a-zA-Z0-9._~-]{1,10}$/));
    fc.assert(
      fc.property(value, value, fc.constantFrom("/x", "/", "/../x"), (a, b, input) => {
        const verdict = judgeDestination(rules, { a, b }, input);
        if (verdict.kind === "allow") {
          allowed += 1;
          expect(verdict.url.hostname).toMatch(/^[a-z0-9-]+\.acme\.com$/);
          expect(verdict.url.pathname).toBe(`/o/${b}${input}`);
        }
      }),
      { numRuns: 5000 },
    );
    expect(allowed).toBeGreaterThan(20);
  });

  it("a base URL from an account is public https, and what is joined to it stays below it", () => {
    fc.assert(
      fc.property(anyText, anyText, (base, input) => {
        const verdict = judgeDestination(selfHosted, { base }, input);
        if (verdict.kind === "allow") {
          expect(verdict.url.protocol).toBe("https:");
          expect(judgeUrl(verdict.url.href)).toMatchObject({ kind: "allow" });
          expect(verdict.url.pathname).toContain("/api/");
        }
      }),
      { numRuns: 3000 },
    );
  });
});
