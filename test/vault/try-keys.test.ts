// Keys are tried at the provider before they are stored, where it is asked for and the app says how.
import { expect, test } from "vitest";
import type { CatalogApp } from "#libs/catalog.ts";
import { soon, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { asAccount, newAccountId } = vault;
const good = "sandbox-key-0123456789";
const bad = "another-key-0123456789";

/** An app of the sandbox whose keys have no form that the vault could refuse by itself. */
function define(slug: string, like: string, proxy: Partial<CatalogApp["proxy"]>): void {
  const app = vault.catalog.get(like);
  if (app === undefined) throw new Error("the catalog has changed");
  const custom_fields = app.custom_fields.map(({ pattern: _pattern, ...field }) => field);
  vault.catalog.set(slug, { ...app, slug, custom_fields, proxy: { ...app.proxy, ...proxy } });
}
define("header", "sandbox_header_key", { probe: { path: "/whoami" } });
define("query", "sandbox_query_key", { probe: { path: "/whoami" } });
define("speaking", "sandbox_header_key", { probe: { path: "/whoami", success_at: "ok" } });
define("silent", "sandbox_header_key", {});
define("away", "sandbox_header_key", {
  probe: { path: "/whoami" },
  base_url: `${vault.shim.url}/keys/header`,
  allowed_ports: [Number(new URL(vault.shim.url).port)],
});
define("inside", "sandbox_header_key", { probe: { path: "/whoami" }, base_url: "https://10.0.0.1/x" });

const store = (appSlug: string, key: string, tried = true, accountId = newAccountId()) =>
  asAccount.storeCredential(
    {
      ...whose,
      accountId,
      appSlug,
      test: tried,
      material: { $case: "fields", value: { values: { api_key: key } } },
    },
    soon(),
  );
const refused = {
  code: "FAILED_PRECONDITION",
  reason: "KEY_TEST_FAILED",
  message: "Test request failed. Please verify your credentials and try again.",
};

test.each(["header", "query"])(
  "stores a key in the %s that the provider takes, and none that it refuses",
  async (app) => {
    expect((await store(app, good)).credential?.generation).toBe(1n);
    const accountId = newAccountId();
    await expect(store(app, bad, true, accountId)).rejects.toMatchObject(refused);
    await expect(vault.lease(accountId)).rejects.toMatchObject({ code: "NOT_FOUND" });
  },
);

test("tries nothing where it is not asked for, or the app does not say how", async () => {
  expect((await store("header", bad, false)).credential?.generation).toBe(1n);
  expect((await store("silent", bad)).credential?.generation).toBe(1n);
});

test("wants the word in the answer where status 200 says nothing", async () => {
  await expect(store("speaking", good)).rejects.toMatchObject(refused);
});

test("keeps the key of an account when a new one is refused", async () => {
  const accountId = newAccountId();
  await store("header", good, true, accountId);
  await expect(store("header", bad, true, accountId)).rejects.toMatchObject(refused);
  expect((await vault.lease(accountId)).lease?.headers[0]?.value).toBe(good);
});

test("says that the provider is away, and goes to no place that the rules forbid", async () => {
  expect((await store("away", good)).credential?.generation).toBe(1n);
  for (const fault of ["break", { status: 503, body: "" }, { status: 429, body: "" }] as const) {
    vault.shim.misbehave(() => fault);
    await expect(store("away", good)).rejects.toMatchObject({ code: "UNAVAILABLE", reason: "PROVIDER_UNREACHABLE" });
  }
  await expect(store("inside", good)).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
});

test("logs no key", async () => {
  await expect(store("header", bad)).rejects.toMatchObject(refused);
  expect(vault.vault.lines.join("")).not.toContain(bad);
});
