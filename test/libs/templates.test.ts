// Positions of custom fields in a base URL, beyond the vectors.
import { describe, expect, it } from "vitest";
import { expandBaseUrl } from "#libs/templates.ts";

function expand(template: string, fields: Record<string, unknown>): string {
  const base = expandBaseUrl(template, fields);
  return base.kind === "allow" ? base.text : base.rule;
}

describe("expandBaseUrl", () => {
  it.each([
    ["https://api.{{custom_fields.a}}/v1", "acme.com", "https://api.acme.com/v1"],
    ["https://api.{{custom_fields.a}}/v1", "acme.com/", "FIELD_NOT_A_HOST"],
    ["https://{{custom_fields.a}}:8443/v1", "acme.com", "https://acme.com:8443/v1"],
    ["https://x-{{custom_fields.a}}.acme.com", "eu", "https://x-eu.acme.com"],
    ["https://x-{{custom_fields.a}}.acme.com", "e.u", "FIELD_NOT_A_LABEL"],
    ["{{custom_fields.a}}/v1", "https://acme.com/", "https://acme.com/v1"],
    ["{{custom_fields.a}}.acme.com", "https://x", "PLACEHOLDER_POSITION"],
    ["https://acme.com:{{custom_fields.a}}/", "443", "PLACEHOLDER_POSITION"],
    ["https://acme.com/?q={{custom_fields.a}}", "x", "PLACEHOLDER_POSITION"],
    ["{{custom_fields.b}}/{{custom_fields.a}}", "..", "FIELD_NOT_A_SEGMENT"],
    ["https://{{ custom_fields.a }}.acme.com", "x", "PLACEHOLDER_NOT_ALLOWED"],
    ["https://{{custom_fields.a}.acme.com", "x", "TEMPLATE_MALFORMED"],
    ["https://acme.com/{{custom_fields.a}}", "$&", "FIELD_NOT_A_SEGMENT"],
  ])("%s with %s gives %s", (template, a, expected) => {
    expect(expand(template, { a, b: "https://acme.com" })).toBe(expected);
  });

  it("puts a value in once: what it says is never read as a template", () => {
    expect(expand("{{custom_fields.a}}", { a: "{{custom_fields.b}}", b: "https://acme.com" })).toBe("FIELD_NOT_A_URL");
  });

  it("takes own text fields only", () => {
    expect(expand("https://{{custom_fields.toString}}.acme.com", {})).toBe("FIELD_MISSING");
    expect(expand("https://{{custom_fields.a}}.acme.com", { a: 5 })).toBe("FIELD_MISSING");
    expect(expand("https://{{custom_fields.a}}.acme.com", Object.create({ a: "x" }))).toBe("FIELD_MISSING");
  });

  it("names the field and never its value", () => {
    const denial = expandBaseUrl("https://{{custom_fields.key}}.acme.com", { key: "s3cret/" });
    expect(JSON.stringify(denial)).toContain("custom_fields.key");
    expect(JSON.stringify(denial)).not.toContain("s3cret");
  });
});
