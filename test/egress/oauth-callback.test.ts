// The way back from the provider: each oauth-callback vector, by the true vault, account service and gateway.
//
// One conflict is decided here: a life below a minute is not made a minute, for the token would be used after its end; a life
// of nothing or less counts as not told.
import { afterAll, beforeAll, expect } from "vitest";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import {
  binding,
  call,
  newConnectToken,
  newKeyAccount,
  newOauthApp,
  newProject,
  production,
  startAccount,
} from "../account/harness.ts";
import { connectToken, type GatewayFixture, startGatewayFixture, validToken } from "../gateway/gateway-fixture.ts";
import { type Action, testVectors } from "../support/integration-vectors.ts";
import { soon, vaultFixture } from "../vault/vault-fixture.ts";

const vault = await vaultFixture();
const { asAccount, consent, newAccountId } = vault;
const account = await startAccount();
const { api, gateway: asGateway } = account;
let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());

/** Completes an authorization for which the token endpoint gives this answer. */
async function completeWith(answer: string) {
  const accountId = newAccountId();
  const { redirect } = await consent(accountId);
  vault.shim.misbehave((path) => (path === "/token" ? { status: 200, body: answer } : undefined));
  try {
    return { accountId, credential: (await asAccount.completeAuthorization(redirect, soon())).credential };
  } catch (error) {
    return { accountId, error };
  } finally {
    vault.shim.misbehave(() => undefined);
  }
}

const tokenAnswer = (more: object) =>
  JSON.stringify({ access_token: "an-access-token", token_type: "Bearer", ...more });

/** An answer that makes no credential and connects nobody. */
const refused =
  (answer: string): Action =>
  async () => {
    const { accountId, error } = await completeWith(answer);
    expect(error).toMatchObject({ reason: expect.stringMatching(/^PROVIDER_/) });
    await expect(vault.lease(accountId)).rejects.toMatchObject({ code: "NOT_FOUND" });
    expect(vault.vault.lines.join()).not.toContain("an-access-token");
  };

async function newProjectWithApp() {
  const project = await newProject(account);
  await newOauthApp(account, project.projectId);
  return project;
}

testVectors("oauth-callback", {
  "oauth-callback-003": async () => {
    const { redirect } = await consent(newAccountId());
    const before = vault.tokenRequests();
    await asAccount.completeAuthorization(redirect, soon());
    // A repeat is told what came of the first; another code for the used state is not looked at.
    await asAccount.completeAuthorization(redirect, soon());
    await asAccount.completeAuthorization({ ...redirect, code: "another" }, soon()).catch(() => undefined);
    expect(vault.tokenRequests() - before).toBe(1);
  },
  "oauth-callback-006": async () => {
    const accountId = newAccountId();
    const { redirect } = await consent(accountId);
    const before = vault.tokenRequests();
    const made = asAccount.completeAuthorization({ ...redirect, issuer: "" }, soon());
    await expect(made).rejects.toMatchObject({ reason: "ISSUER_MISMATCH" });
    expect(vault.tokenRequests()).toBe(before);
    await expect(vault.lease(accountId)).rejects.toMatchObject({ code: "NOT_FOUND" });
  },
  "oauth-callback-007": async () => {
    const [victim, attacker] = [newAccountId(), newAccountId()];
    const [theirs, own] = [await consent(victim), await consent(attacker)];
    const mixed = asAccount.completeAuthorization({ ...own.redirect, code: theirs.redirect.code }, soon());
    await expect(mixed).rejects.toMatchObject({ reason: "CODE_REJECTED" });
    await expect(vault.lease(attacker)).rejects.toMatchObject({ code: "NOT_FOUND" });
  },
  "oauth-callback-010": async () => {
    const { accountId, credential } = await completeWith(tokenAnswer({ expires_in: 3600 }));
    expect(credential).toMatchObject({ state: CredentialState.ACTIVE, nextRefreshTime: undefined });
    expect((await vault.lease(accountId)).lease?.headers[0]?.value).toBe("Bearer an-access-token");
    await vault.endTokenIn(accountId, -1);
    await expect(vault.lease(accountId)).rejects.toMatchObject({ reason: "NEEDS_REAUTH" });
    expect(await vault.credential(accountId)).toMatchObject({ stateReason: "NO_REFRESH_TOKEN" });
  },
  "oauth-callback-011": refused(tokenAnswer({ token_type: "mac" })),
  "oauth-callback-012": async () => {
    const yearMs = 365 * 86_400_000 + 60_000;
    for (const [life, told] of [
      ['"expires_in": -1', false],
      ['"expires_in": "3600"', true],
      ['"expires_in": 1e99', true],
      ['"scope": "x"', false],
    ] as const) {
      const { accountId, credential } = await completeWith(
        `{"access_token":"an-access-token","refresh_token":"r",${life}}`,
      );
      expect(credential?.state, life).toBe(CredentialState.ACTIVE);
      expect(credential?.expireTime !== undefined, life).toBe(told);
      expect((credential?.expireTime?.getTime() ?? 0) - Date.now(), life).toBeLessThan(yearMs);
      expect((await vault.lease(accountId)).lease?.headers, life).toHaveLength(1);
    }
  },
  "oauth-callback-013": refused(tokenAnswer({ padding: "x".repeat(10 * 1024 * 1024) })),
  "oauth-callback-014": refused(tokenAnswer({ access_token: "an-access-token\r\nx-evil: 1" })),
  "oauth-callback-015": async () => {
    const { token } = await newProjectWithApp();
    const connect = await newConnectToken(account, token);
    const start = () => api.startConnection({ appSlug: "sandbox", browserBinding: binding }, call(connect));
    const state = new URL((await start()).authorizationUrl).searchParams.get("state") ?? "";
    await asGateway.completeConnection({ state, code: "the-code", browserBinding: binding }, call());
    await expect(start()).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "CONNECT_TOKEN_INVALID" });
    const long = newConnectToken(account, token, { lifetimeSeconds: 4 * 3600 + 1 });
    await expect(long).rejects.toMatchObject({ violations: [{ field: "lifetime_seconds" }] });
  },
  "oauth-callback-016": async () => {
    const [own, other] = [await newProjectWithApp(), await newProjectWithApp()];
    const { id: accountId } = await newKeyAccount(account, other.token);
    const connect = await newConnectToken(account, own.token);
    const absent = { code: "NOT_FOUND", message: "No such account." };
    const use = { appSlug: "sandbox", accountId, browserBinding: binding };
    await expect(api.startConnection(use, call(connect))).rejects.toMatchObject(absent);
    await expect(api.getAccount({ accountId }, call(connect))).rejects.toMatchObject(absent);
  },
  "oauth-callback-018": async () => {
    const { token } = await newProjectWithApp();
    const refusal = { code: "INVALID_ARGUMENT", violations: [{ field: "success_redirect_uri" }] };
    for (const successRedirectUri of ["javascript:alert(1)", "data:text/html,x", "http://app.example/done"]) {
      await expect(newConnectToken(account, token, { successRedirectUri })).rejects.toMatchObject(refusal);
    }
    const plain = { environment: production, successRedirectUri: "http://localhost/done" } as const;
    await expect(newConnectToken(account, token, plain)).rejects.toMatchObject(refusal);
  },
  "oauth-callback-020": async () => {
    const policyOf = async (allowedOrigins: string[]) => {
      gateway.changeAccount({ validateConnectToken: async () => validToken({ allowedOrigins }) });
      const page = await gateway.sendBare(`/_static/connect.html?token=${connectToken}&app=slack&connectLink=true`);
      return page.headers.get("content-security-policy") ?? "";
    };
    expect(await policyOf([])).toMatch(/; frame-ancestors 'none'$/);
    expect(await policyOf(["https://app.example"])).toMatch(/; frame-ancestors https:\/\/app\.example$/);
  },
});
