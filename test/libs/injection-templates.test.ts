// An app's injection templates, filled in.
import { expect, test } from "vitest";
import { type CatalogApp, loadCatalog } from "#libs/catalog.ts";
import { fillInjection } from "#libs/injection-templates.ts";

const sandbox = loadCatalog("catalog", { production: false }).get("sandbox_header_key");

function appWith(proxy: object): CatalogApp {
  if (sandbox === undefined) throw new Error("the catalog has no sandbox_header_key");
  const inject = { headers: {}, query: {} };
  const defaults = {
    enabled: true,
    base_url: "https://api.example.com",
    allowed_domains: [],
    allowed_ports: [],
    inject,
    auth_failure: [],
    echo_allowed: false,
  };
  return { ...sandbox, proxy: { ...defaults, ...proxy } };
}

const notInjectable = { code: "FAILED_PRECONDITION", reason: "CREDENTIAL_NOT_INJECTABLE" };

test("fills headers, query and basic authentication", () => {
  const inject = {
    headers: { "x-key": "Key {{credential.key}}" },
    query: { token: "{{credential.access_token}}" },
    basic: { username: "{{ credential.user }}", password: "{{credential.key}}" },
  };
  const material = { accessToken: "a&b", fields: { key: "k", user: "ü" } };
  expect(fillInjection(appWith({ inject }), material)).toMatchObject({
    headers: [
      { name: "x-key", value: "Key k" },
      { name: "authorization", value: `Basic ${Buffer.from("ü:k").toString("base64")}` },
    ],
    query: [{ name: "token", value: "a&b" }],
  });
});

test("puts in a value that looks like a placeholder or a replacement pattern as it is", () => {
  const inject = { headers: { a: "{{credential.one}}", b: "{{credential.two}}" }, query: {} };
  const fields = { one: "{{credential.two}}", two: "$&$1" };
  expect(fillInjection(appWith({ inject }), { fields }).headers).toEqual([
    { name: "a", value: "{{credential.two}}" },
    { name: "b", value: "$&$1" },
  ]);
});

test.each([
  ["a refresh token", "{{credential.refresh_token}}"],
  ["a field that is absent", "{{credential.absent}}"],
  ["something inherited", "{{credential.constructor}}"],
  ["another namespace", "{{custom_fields.key}}"],
])("refuses a template that names %s", (_name, template) => {
  const app = appWith({ inject: { headers: { a: template }, query: {} } });
  const material = { accessToken: "a", refreshToken: "r", fields: { key: "k" } };
  expect(() => fillInjection(app, material)).toThrow(expect.objectContaining(notInjectable));
});

test.each(["line\r\nx-other: 1", "nul\0", "ümlaut"])("refuses %j as a header's value, without repeating it", (key) => {
  const app = appWith({ inject: { headers: { "x-key": "{{credential.key}}" }, query: {} } });
  expect(() => fillInjection(app, { fields: { key } })).toThrow(/^The value for header x-key has characters/);
});

test("expands the account's own base URL, and then allows paths alone", () => {
  const app = appWith({ base_url: "https://{{custom_fields.subdomain}}.example.com/v1" });
  expect(fillInjection(app, { fields: { subdomain: "acme" } })).toMatchObject({
    baseUrl: "https://acme.example.com/v1",
    absoluteUrlsAllowed: false,
  });
  expect(fillInjection(appWith({}), { fields: {} })).toMatchObject({ absoluteUrlsAllowed: true });
  expect(() => fillInjection(app, { fields: { subdomain: "evil.com/" } })).toThrow("custom_fields.subdomain");
});

test("gives no secret for an app that may not be proxied", () => {
  const app = appWith({ enabled: false, inject: { headers: { a: "{{credential.key}}" }, query: {} } });
  expect(fillInjection(app, { fields: { key: "k" } })).toMatchObject({ headers: [], query: [] });
});
