// What a grant must be to be kept: the pure rules by table, then each of them at work in a vault with the true provider. What
// is refused leaves the account as it was, and is revoked at the provider.
import { beforeEach, describe, expect, test } from "vitest";
import type { CatalogApp } from "#libs/catalog.ts";
import { digest } from "#libs/ids.ts";
import { answerConsent } from "../../dev/sandbox-consent.ts";
import { capture, judgeIdentity, lacksScopes, lacksValues } from "../../services/vault/grant-rules.ts";
import { redirectUri, soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { asAccount, newAccountId } = vault;

function sandbox() {
  const app = vault.catalog.get("sandbox");
  if (app?.oauth2 === undefined) throw new Error("the sandbox connects by OAuth");
  return { ...app, oauth2: app.oauth2 };
}
const plain = structuredClone(sandbox());

/** The sandbox with other words in its entry. */
function change(oauth2: object, more: Partial<CatalogApp> = {}): void {
  vault.catalog.set("sandbox", { ...plain, ...more, oauth2: { ...plain.oauth2, ...oauth2 } });
}
beforeEach(() => change({}));

describe("by itself", () => {
  const asked = ["openid", "offline_access", "read", "write"];
  test.each([
    ["all of it", ["read", "write"], false],
    ["a part", ["read"], true],
    ["nothing", [], true],
    ["in another order, with more", ["write", "admin", "read"], false],
    ["and the provider says nothing of scopes", undefined, false],
  ])("granted: %s", (_name, granted, lacking) => {
    expect(lacksScopes(plain, asked, granted)).toBe(lacking);
  });

  test("cannot tell where the provider's words for scopes are others", () => {
    const app = { ...plain, oauth2: { ...plain.oauth2, scopes_comparable: false } };
    expect(lacksScopes(app, asked, [])).toBe(false);
  });

  const field = { from: "token", at: "team.id", optional: false } as const;
  test.each([
    [{ team: { id: "T1" } }, { team: "T1" }],
    [{ team: { id: 42 } }, { team: "42" }],
    [{ team: { id: "T1\n" } }, {}],
    [{ team: { id: "" } }, {}],
    [{ team: {} }, {}],
    [undefined, {}],
    [{ team: { id: "x".repeat(2001) } }, {}],
  ])("captures from %j", (answer, values) => {
    const app = { ...plain, oauth2: { ...plain.oauth2, capture: { team: field } } };
    expect(capture(app, "token", answer)).toEqual(values);
    expect(capture(app, "redirect", answer)).toEqual({});
  });

  test("captures what has the form that the entry asks for", () => {
    const app = { ...plain, oauth2: { ...plain.oauth2, capture: { team: { ...field, pattern: "T\\d" } } } };
    expect(capture(app, "token", { team: { id: "T1" } })).toEqual({ team: "T1" });
    expect(capture(app, "token", { team: { id: "T1.evil" } })).toEqual({});
    expect([lacksValues(app, {}), lacksValues(app, { team: "T1" })]).toEqual([true, false]);
  });

  test("lacks values with which its base URL is none", () => {
    const at = { ...plain, proxy: { ...plain.proxy, base_url: "https://{{custom_fields.team}}.example.com" } };
    const app = { ...at, oauth2: { ...plain.oauth2, capture: { team: field } } };
    expect([lacksValues(app, { team: "a.b/c" }), lacksValues(app, { team: "acme" })]).toEqual([true, false]);
  });

  const ann = { name: "Ann", key: "u_1" };
  test.each([
    ["an account whose user is not known", null, ann, undefined],
    ["the same user", digest("u_1"), ann, undefined],
    ["the same by the name, before the entry knew of ids", digest("Ann"), ann, undefined],
    ["another", digest("u_2"), ann, "IDENTITY_MISMATCH"],
    ["nobody", digest("u_1"), { name: "", key: "" }, "IDENTITY_UNKNOWN"],
  ])("takes for %s", (_name, known, identity, fault) => {
    expect(judgeIdentity(known, identity)).toBe(fault);
  });
});

/** Begins an authorization and plays the user; gives what the redirect brings. */
async function consent(accountId: string, { name = "Ada Lovelace", allScopesRequired = true, parameters = {} } = {}) {
  const request = { ...whose, accountId, appSlug: "sandbox", oauthAppId: vault.oauthAppId, redirectUri };
  const { authorizationUrl } = await asAccount.startAuthorization({ ...request, allScopesRequired }, soon());
  const back = new URL(await answerConsent({ authorizationUrl, decision: "allow", name, ca: vault.tls.ca }));
  const value = (parameter: string) => back.searchParams.get(parameter) ?? "";
  return { state: value("state"), code: value("code"), issuer: value("iss"), parameters };
}

/** The provider's answer to the next code, changed. */
function changeTokenAnswer(answer: object): void {
  const tokens = { access_token: "a-token-of-the-shim", refresh_token: "r", token_type: "Bearer", expires_in: 600 };
  const body = JSON.stringify({ ...tokens, ...answer });
  vault.shim.misbehave((path) => (path === "/token" ? { status: 200, body } : undefined));
}

describe("in the vault", () => {
  test("connects the same user again in place", async () => {
    const accountId = newAccountId();
    await asAccount.completeAuthorization(await consent(accountId), soon());
    const { credential } = await asAccount.completeAuthorization(await consent(accountId), soon());
    expect(credential).toMatchObject({ accountId, generation: 2n });
  });

  test("refuses another user for the account, leaves its credential, and revokes what was granted", async () => {
    const accountId = newAccountId();
    await asAccount.completeAuthorization(await consent(accountId), soon());
    const before = await vault.rowOf(accountId);
    const revocations = vault.provider.stats.revocationRequests;
    const redirect = await consent(accountId, { name: "Eve" });
    for (let repeat = 0; repeat < 2; repeat += 1) {
      await expect(asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({
        code: "FAILED_PRECONDITION",
        reason: "IDENTITY_MISMATCH",
        message: expect.stringContaining("another user"),
      });
    }
    expect(await vault.rowOf(accountId)).toEqual(before);
    const { lease } = await vault.lease(accountId);
    expect(await vault.callApi(lease)).toBe(200);
    await until(() => vault.provider.stats.revocationRequests > revocations);
    expect(await vault.callApi(lease)).toBe(200);
  });

  test("refuses to connect again when the provider does not say who the user is", async () => {
    const accountId = newAccountId();
    await asAccount.completeAuthorization(await consent(accountId), soon());
    change({ identity: { url: `${vault.provider.url}/api/nothing`, name: "name" } });
    const again = asAccount.completeAuthorization(await consent(accountId), soon());
    await expect(again).rejects.toMatchObject({ reason: "IDENTITY_UNKNOWN" });
    expect((await vault.credential(accountId))?.generation).toBe(1n);
  });

  test("refuses a part of the scopes, and revokes it; takes it where a part will do", async () => {
    const accountId = newAccountId();
    const redirect = await consent(accountId);
    changeTokenAnswer({ scope: "openid read" });
    await expect(asAccount.completeAuthorization(redirect, soon())).rejects.toMatchObject({
      code: "FAILED_PRECONDITION",
      reason: "SCOPES_MISSING",
    });
    await expect(vault.lease(accountId)).rejects.toMatchObject({ code: "NOT_FOUND" });
    const rows = await vault.db.selectFrom("revocations").selectAll().where("accountId", "=", accountId).execute();
    expect(rows).toHaveLength(1);
    const partial = await consent(accountId, { allScopesRequired: false });
    const { credential } = await asAccount.completeAuthorization(partial, soon());
    expect(credential?.scopes).toEqual(["openid", "read"]);
  });

  test("keeps values of the redirect, the token answer and the identity answer, for the base URL and the request", async () => {
    const capture = {
      realm: { from: "redirect", at: "realmId", pattern: "\\d+", optional: false },
      team: { from: "token", at: "team.id", optional: false },
      person: { from: "identity", at: "name", optional: false },
    };
    const inject = { headers: { "x-team": "{{credential.team}}", "x-person": "{{credential.person}}" }, query: {} };
    const proxy = { ...plain.proxy, base_url: "https://api.example.com/{{custom_fields.realm}}", inject };
    change({ capture }, { proxy });
    const accountId = newAccountId();
    const redirect = await consent(accountId, { parameters: { realmId: "42", other: "x" } });
    // The sandbox's own token, with what another provider would say beside it.
    vault.shim.misbehave(() => undefined);
    const lacking = asAccount.completeAuthorization(redirect, soon());
    await expect(lacking).rejects.toMatchObject({ reason: "VALUES_MISSING" });
    await expect(vault.lease(accountId)).rejects.toMatchObject({ code: "NOT_FOUND" });
    change(
      { capture: { realm: capture.realm, person: capture.person } },
      {
        proxy: { ...proxy, inject: { headers: { "x-person": "{{credential.person}}" }, query: {} } },
      },
    );
    const whole = await consent(accountId, { parameters: { realmId: "42" } });
    await asAccount.completeAuthorization(whole, soon());
    const { lease } = await vault.lease(accountId);
    expect(lease?.baseUrl).toBe("https://api.example.com/42");
    expect(lease?.headers).toEqual([{ name: "x-person", value: "Ada Lovelace" }]);
    const wrong = await consent(newAccountId(), { parameters: { realmId: "42/../evil" } });
    await expect(asAccount.completeAuthorization(wrong, soon())).rejects.toMatchObject({ reason: "VALUES_MISSING" });
  });

  test("keeps values of the token answer", async () => {
    const capture = { team: { from: "token", at: "team.id", optional: false } };
    const inject = { headers: { "x-team": "{{credential.team}}" }, query: {} };
    change({ capture }, { proxy: { ...plain.proxy, inject } });
    const accountId = newAccountId();
    const redirect = await consent(accountId);
    changeTokenAnswer({ team: { id: "T9" } });
    await asAccount.completeAuthorization(redirect, soon());
    const { lease } = await vault.lease(accountId);
    expect(lease?.headers).toEqual([{ name: "x-team", value: "T9" }]);
  });
});
