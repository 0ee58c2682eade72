// A caller's headers and the encoded URL of the REST edge, beyond the vectors.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeTargetUrl } from "#libs/encoded-url.ts";
import { type Header, judgeRequestHeaders } from "#libs/request-headers.ts";

function ruleFor(name: string, value = "x", injected: readonly string[] = ["Authorization", "X-Api-Key"]): string {
  const verdict = judgeRequestHeaders([[name, value]], injected);
  return verdict.kind === "allow" ? "allow" : verdict.rule;
}

describe("judgeRequestHeaders", () => {
  it.each(
    (
      "ACCEPT-ENCODING ACCESS-CONTROL-REQUEST-HEADERS ACCESS-CONTROL-REQUEST-METHOD CONNECTION CONTENT-LENGTH COOKIE DATE DNT " +
      "EXPECT HOST KEEP-ALIVE ORIGIN PERMISSIONS-POLICY REFERER TE TRAILER TRANSFER-ENCODING UPGRADE VIA NOTE PROXY PROXY-X SEC-X HTTP2-SETTINGS"
    ).split(" "),
  )("refuses %s in any case and with _ for -", (name) => {
    for (const spelling of [
      name,
      name.toLowerCase(),
      name.replaceAll("-", "_"),
      name.toLowerCase().replace("-", "_"),
    ]) {
      const verdict = judgeRequestHeaders([[spelling, "x"]], []);
      expect(verdict).toMatchObject({ rule: "HEADER_RESTRICTED", code: "INVALID_ARGUMENT" });
      expect(verdict.kind === "deny" && verdict.message).toContain(spelling);
    }
  });

  it("refuses a control character in a value wherever it stands, and lets every printable one pass", () => {
    for (let code = 0; code <= 0x180; code += 1) {
      const character = String.fromCharCode(code);
      const isPassed = character === "\t" || (code >= 0x20 && code <= 0x7e);
      for (const value of [character, `${character}a`, `a${character}`, `a${character}b`]) {
        expect(ruleFor("x-a", value), `code ${code}`).toBe(isPassed ? "allow" : "HEADER_VALUE");
      }
    }
  });

  it("refuses every character in a name that no token has", () => {
    const tokens = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for (let code = 0; code <= 0x180; code += 1) {
      const character = String.fromCharCode(code);
      expect(ruleFor(`x${character}a`), `code ${code}`).toBe(tokens.includes(character) ? "allow" : "HEADER_NAME");
    }
  });

  it("refuses the injected names in any spelling, and only those", () => {
    expect(["authorization", "X_API_KEY", "x-api_key"].map((name) => ruleFor(name))).toEqual(
      Array(3).fill("HEADER_INJECTED"),
    );
    expect(ruleFor("x-api-key-2")).toBe("allow");
    expect(ruleFor("authorization", "Bearer x", [])).toBe("allow");
  });

  it("counts 8 KiB for a header and 64 headers for a request", () => {
    expect(ruleFor("x-a", "v".repeat(8189))).toBe("allow");
    expect(ruleFor("x-a", "v".repeat(8190))).toBe("HEADER_TOO_LONG");
    const many = (count: number) => Array.from({ length: count }, (_, index): Header => [`x-${index}`, "v"]);
    expect(judgeRequestHeaders(many(64), []).kind).toBe("allow");
    expect(judgeRequestHeaders(many(65), [])).toMatchObject({ rule: "TOO_MANY_HEADERS" });
  });

  it("never repeats a value in a refusal", () => {
    expect(JSON.stringify(judgeRequestHeaders([["x-a", "s3cret\r\n"]], []))).not.toContain("s3cret");
    expect(JSON.stringify(judgeRequestHeaders([["cookie", "s3cret"]], []))).not.toContain("s3cret");
  });

  it("allows nothing that could break a message, whatever the text", () => {
    const name = fc.oneof(fc.string({ unit: "binary", maxLength: 20 }), fc.stringMatching(/^[A-Za-z_-]{1,20}$/));
    fc.assert(
      fc.property(name, fc.oneof(fc.string({ unit: "binary" }), fc.string()), (anyName, value) => {
        const verdict = judgeRequestHeaders([[anyName, value]], ["authorization"]);
        if (verdict.kind === "allow") {
          expect(verdict.headers).toEqual([[anyName.toLowerCase(), value]]);
          expect(`${anyName}: ${value}`).toMatch(/^[!-9;-~]+: [\t -~]*$/);
          expect(anyName.toLowerCase().replaceAll("_", "-")).not.toMatch(/^(?:authorization|host|proxy-.*|sec-.*)$/);
        }
      }),
      { numRuns: 3000 },
    );
  });
});

describe("decodeTargetUrl", () => {
  it("reads any text in every encoding that clients use", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme", minLength: 1 }), (text) => {
        const bytes = Buffer.from(text);
        const urlSafe = bytes.toString("base64url");
        const padded = urlSafe.padEnd(Math.ceil(urlSafe.length / 4) * 4, "=");
        for (const encoded of [bytes.toString("base64"), urlSafe, padded]) {
          expect(decodeTargetUrl(encoded)).toEqual({ kind: "allow", text });
        }
      }),
      { numRuns: 2000 },
    );
  });

  it("keeps a byte order mark, which the URL rules then refuse", () => {
    expect(decodeTargetUrl(Buffer.from("\ufeff/x").toString("base64"))).toEqual({ kind: "allow", text: "\ufeff/x" });
  });

  it.each(["", "=", "YQ=", "YQ===", "YWI==", "YQ==YQ==", "YR", "YQ\n"])("refuses %j", (encoded) => {
    expect(decodeTargetUrl(encoded)).toMatchObject({ kind: "deny", code: "INVALID_ARGUMENT" });
  });
});
