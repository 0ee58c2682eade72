// What a project's own app may be: the catalog's schema with every fault by its field, and the rules beyond it.
import { expect, test } from "vitest";
import { judgeDefinition, readDefinition } from "#libs/app-definition.ts";
import { ownAppFaults } from "#libs/own-app-rules.ts";

const base = {
  slug: "crm",
  name: "CRM",
  auth: "keys",
  custom_fields: [
    { name: "api_key", label: "Key", secret: true },
    { name: "tenant", label: "Tenant" },
  ],
  proxy: {
    enabled: true,
    base_url: "https://{{custom_fields.tenant}}.crm.com/v1",
    allowed_domains: ["api.crm.com", "*.crm.com"],
    inject: { headers: { authorization: "Bearer {{credential.api_key}}" } },
  },
};
const oauth2 = {
  authorize: { url: "https://login.crm.com/authorize" },
  token: { url: "https://login.crm.com/token" },
};

function faultsOf(more: object, exemptTargets: readonly string[] = []): Readonly<Record<string, string>> {
  const judged = judgeDefinition(JSON.stringify({ ...base, ...more }));
  const faults = judged.kind === "faults" ? judged.faults : ownAppFaults(judged.app, exemptTargets);
  return Object.fromEntries(faults.map(({ field, description }) => [field, description]));
}
const proxyWith = (more: object) => ({ proxy: { ...base.proxy, ...more } });

test("takes a good definition, in JSON and in YAML", () => {
  expect(faultsOf({})).toEqual({});
  const inject = { headers: { authorization: "Bearer {{credential.access_token}}" } };
  expect(faultsOf({ auth: "oauth2", oauth2, ...proxyWith({ inject }) })).toEqual({});
  const yaml = "slug: a\nname: A\nauth: none\nproxy:\n  enabled: true\n  base_url: https://a.com\n  inject: {}\n";
  expect(judgeDefinition(yaml)).toMatchObject({ kind: "app", app: { slug: "a", lifecycle: { rotation: "strict" } } });
  expect(readDefinition(yaml)).toBe(readDefinition(yaml));
});

test("tells every fault of the schema at once, by its field, and repeats no value", () => {
  const faults = faultsOf({
    slug: "Not A Slug",
    nmae: "secret-in-the-wrong-place",
    auth: "magic",
    custom_fields: [{ name: "UPPER", label: 1 }],
    ...proxyWith({ allowed_ports: [0] }),
  });
  expect(Object.keys(faults).sort()).toEqual([
    "definition.auth",
    "definition.custom_fields.0.label",
    "definition.custom_fields.0.name",
    "definition.nmae",
    "definition.proxy.allowed_ports.0",
    "definition.slug",
  ]);
  expect(JSON.stringify(faults)).not.toContain("secret-in");
});

test.each([
  ["slug: [", /neither YAML nor JSON \(line 1/],
  ["slug: a\nslug: b", /line 2/],
  [`a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]`, /aliases/],
  ["[".repeat(60_000), /definition/],
])("refuses what is no text of a definition: %#", (text, fault) => {
  const judged = judgeDefinition(text);
  expect(judged.kind).toBe("faults");
  expect(JSON.stringify(judged)).toMatch(fault);
});

test.each<[object, string]>([
  [{ development: true }, "development"],
  [{ name: " " }, "name"],
  [{ image_url: "http://crm.com/a.png" }, "image_url"],
  [{ custom_fields: [...base.custom_fields, { name: "tenant", label: "T" }] }, "custom_fields.2.name"],
  [
    { custom_fields: [{ ...base.custom_fields[0], default: "shared" }, base.custom_fields[1]] },
    "custom_fields.0.default",
  ],
  [proxyWith({ base_url: "https://127.0.0.1/v1" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://[::1]/v1" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://0x7f.1/v1" }), "proxy.base_url"],
  [proxyWith({ base_url: "http://api.crm.com" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://vault.internal" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://vault" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://api.crm.com:8443" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://user@api.crm.com" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://{{custom_fields.tenant}}.localhost" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://{{custom_fields.other}}.crm.com" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://{{custom_fields.api_key}}.crm.com" }), "proxy.base_url"],
  [proxyWith({ base_url: "https://crm.com/?q={{custom_fields.tenant}}" }), "proxy.base_url"],
  [proxyWith({ allowed_domains: ["10.0.0.1"] }), "proxy.allowed_domains.0"],
  [proxyWith({ allowed_domains: ["crm.com", "*.com"] }), "proxy.allowed_domains.1"],
  [proxyWith({ allowed_domains: ["*"] }), "proxy.allowed_domains.0"],
  [proxyWith({ allowed_domains: ["a.crm.com/path"] }), "proxy.allowed_domains.0"],
  [proxyWith({ allowed_domains: ["metadata.internal"] }), "proxy.allowed_domains.0"],
  [proxyWith({ allowed_ports: [25] }), "proxy.allowed_ports.0"],
  [proxyWith({ inject: { headers: { host: "x" } } }), "proxy.inject.headers.host"],
  [proxyWith({ inject: { headers: { "a b": "x" } } }), "proxy.inject.headers.a b"],
  [proxyWith({ inject: { headers: { "x-a": "a\r\nb: c" } } }), "proxy.inject.headers.x-a"],
  [proxyWith({ inject: { headers: { "x-a": "{{credential.refresh_token}}" } } }), "proxy.inject.headers.x-a"],
  [proxyWith({ inject: { query: { key: "{{custom_fields.tenant}}" } } }), "proxy.inject.query.key"],
  [
    proxyWith({ inject: { basic: { username: "{{credential.access_token}}", password: "" } } }),
    "proxy.inject.basic.username",
  ],
])("refuses by the rules beyond the schema: %j", (more, field) => {
  expect(Object.keys(faultsOf(more))).toEqual([`definition.${field}`]);
});

test.each(["authorize", "token", "revoke", "identity"])(
  "judges the endpoint for %s, and lets development's own targets through",
  (name) => {
    const inject = { headers: {} };
    const endpoint = (url: string) => ({
      ...{ auth: "oauth2", ...proxyWith({ inject, base_url: "", allowed_ports: [7480] }) },
      oauth2: { ...oauth2, [name]: { url, ...(name === "identity" && { name: "name" }) } },
    });
    const field = `definition.oauth2.${name}.url`;
    for (const url of [
      "https://10.0.0.1/t",
      "https://idp.local/t",
      "https://login.crm.com:8443/t",
      "https://localhost:7480/t",
    ]) {
      expect(Object.keys(faultsOf(endpoint(url))), url).toEqual([field]);
    }
    expect(faultsOf(endpoint("https://login.crm.com:7480/t"))).toEqual({});
    expect(faultsOf(endpoint("https://localhost:7480/t"), ["localhost:7480"])).toEqual({});
  },
);

const patternOf = (pattern: string) =>
  Object.keys(faultsOf({ custom_fields: [{ ...base.custom_fields[0], pattern }, base.custom_fields[1]] }));

test.each(["sk_(?:live|test)_[A-Za-z0-9]{20,}", "[a-z0-9\\-]+\\.crm\\.com", "\\p{L}{3}-\\d+", "sandbox-key-.{4,200}"])(
  "takes a pattern that cannot go back: %s",
  (pattern) => {
    expect(patternOf(pattern)).toEqual([]);
  },
);

test.each([
  "(a+)+b",
  "(?:a|a)*b",
  "a*a*b",
  "(a|aa)(a|aa)(a|aa)(a|aa)c",
  "(?=a)a",
  "(a)\\1",
  "(?<n>a)",
  "(ab){2}",
  "a{100000}",
])("refuses a pattern that could: %s", (pattern) => {
  expect(patternOf(pattern)).toEqual(["definition.custom_fields.0.pattern"]);
});
