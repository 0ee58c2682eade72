// Reading the app catalog: the files of this repository, and files with a fault each.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type CustomField, fieldFaults, getApp, loadCatalog } from "#libs/catalog.ts";

const good = `slug: acme
name: Acme
auth: keys
custom_fields:
  - { name: api_key, label: API key, secret: true }
proxy:
  enabled: true
  base_url: https://api.acme.example
  inject: { headers: { authorization: "Bearer {{credential.api_key}}" } }
`;
let directory: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "deputy-catalog-"));
});

afterEach(() => rmSync(directory, { recursive: true }));

function load(text: string, file = "acme.yaml", production = true) {
  writeFileSync(join(directory, file), text);
  return loadCatalog(directory, { production });
}

describe("the catalog", () => {
  test("of this repository is sound", () => {
    const catalog = loadCatalog(fileURLToPath(new URL("../../catalog", import.meta.url)), { production: false });
    expect(catalog.get("sandbox")).toMatchObject({ slug: "sandbox", auth: "oauth2" });
  });

  test("gives an app with its defaults", () => {
    expect(load(good).get("acme")).toMatchObject({ development: false, lifecycle: { rotation: "strict" } });
  });

  test("leaves out in production what is marked for development", () => {
    const text = `${good}development: true\n`;
    expect(load(text).size).toBe(0);
    expect(load(text, "acme.yaml", false).size).toBe(1);
  });

  test.each([
    ["an unknown field", `${good}colour: red\n`, "colour"],
    ["a missing field", good.replace("name: Acme\n", ""), "name"],
    [
      "a plain-text endpoint",
      good.replace("auth: keys", "auth: oauth2\noauth2: { authorize: { url: http://a }, token: { url: https://a } }"),
      "oauth2.authorize.url",
    ],
    ["oauth2 without endpoints", good.replace("auth: keys", "auth: oauth2"), "oauth2"],
    ["a pattern that is none", good.replace("secret: true", 'pattern: "(["'), "pattern"],
    ["another slug than its file's", good.replace("slug: acme", "slug: other"), "slug is other"],
  ])("with %s stops the start and names file and field", (_name, text, named) => {
    expect(() => load(text)).toThrow(named);
    expect(() => load(text)).toThrow("acme.yaml");
  });
});

test("an app is found by its slug, and one that is absent is NOT_FOUND", () => {
  const catalog = loadCatalog(fileURLToPath(new URL("../../catalog", import.meta.url)), { production: false });
  expect(getApp(catalog, "sandbox").slug).toBe("sandbox");
  const refusal = expect.objectContaining({ code: "NOT_FOUND", reason: "APP_NOT_FOUND" });
  expect(() => getApp(catalog, "Sandbox")).toThrow(refusal);
});

describe("values for custom fields", () => {
  const field = (more: Partial<CustomField>): CustomField => ({
    name: "a",
    label: "A",
    description: "",
    default: "",
    optional: false,
    secret: false,
    ...more,
  });

  test.each<[string, Partial<CustomField>, Record<string, string>, string | undefined]>([
    ["that is given passes", {}, { a: "x" }, undefined],
    ["that is missing is required", {}, {}, "is required"],
    ["that is optional may be missing", { optional: true }, {}, undefined],
    ["with a default may be missing", { default: "x" }, {}, undefined],
    ["outside of the list is refused", { values: ["x", "y"] }, { a: "z" }, "must be one of x, y"],
    ["that matches passes", { pattern: "[a-z]+" }, { a: "xyz" }, undefined],
    ["that matches in part is refused", { pattern: "[a-z]+" }, { a: "xyz/../s3cret" }, "has not the form"],
    ["that matches one choice in part is refused", { pattern: "a|b" }, { a: "ax" }, "has not the form"],
  ])("%s", (_name, more, values, fault) => {
    const faults = fieldFaults([field(more)], values, "fields");
    expect(faults.map((found) => found.field)).toEqual(fault === undefined ? [] : ["fields.a"]);
    if (fault !== undefined) expect(faults[0]?.description).toContain(fault);
    expect(JSON.stringify(faults)).not.toContain("s3cret");
  });

  test("that the app does not know are refused, and their names not repeated", () => {
    expect(fieldFaults([field({})], { a: "x", s3cret: "y" }, "fields")).toEqual([
      { field: "fields", description: "has a name that is not a field of this app" },
    ]);
  });
});
