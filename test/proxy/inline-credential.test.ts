// What a credential that the caller sends along may be used for: the app's own rules, and each refusal.
import { expect, test } from "vitest";
import { loadCatalog } from "#libs/catalog.ts";
import { inlineUse } from "../../services/proxy/inline-credential.ts";

const catalog = loadCatalog("catalog", { production: false });
const key = "sandbox-key-inline";

test("puts a key where the app wants it, and keeps to the app's hosts", () => {
  const use = inlineUse(catalog, { appSlug: "sandbox_header_key", fields: { api_key: key } });
  expect(use).toMatchObject({
    headers: [{ name: "x-api-key", value: key }],
    query: [],
    allowedDomains: ["localhost"],
    proxyEnabled: true,
  });
});

test("takes the access token of an app with OAuth", () => {
  const use = inlineUse(catalog, { appSlug: "sandbox", fields: { access_token: "sandbox-token-inline" } });
  expect(use.headers).toEqual([{ name: "authorization", value: "Bearer sandbox-token-inline" }]);
});

test.each([
  ["sandbox", {}, "inline_credential.fields.access_token: is required"],
  ["sandbox", { access_token: key, refresh_token: key }, "inline_credential.fields: has a name that"],
  ["sandbox_header_key", {}, "inline_credential.fields.api_key: is required"],
  ["sandbox_header_key", { api_key: "no" }, "inline_credential.fields.api_key: has not the form"],
  ["sandbox_header_key", { api_key: key, access_token: key }, "inline_credential.fields: has a name that"],
])("refuses what is wrong for %s, naming the field and no value: %j", (appSlug, fields, message) => {
  let error: unknown;
  try {
    inlineUse(catalog, { appSlug, fields });
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toMatchObject({ code: "INVALID_ARGUMENT", message: expect.stringContaining(message) });
  expect(String(error)).not.toContain(key);
});

test("an app that is not in the catalog is NOT_FOUND", () => {
  expect(() => inlineUse(catalog, { appSlug: "absent", fields: {} })).toThrow("inline credentials are for its apps");
});
