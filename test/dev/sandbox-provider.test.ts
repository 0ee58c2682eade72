// The sandbox provider by true HTTP: the flow that Deputy will go through, and the strictness that makes it worth
// testing against.
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { expect, test } from "vitest";
import { answerConsent } from "../../dev/sandbox-consent.ts";
import type { SandboxProvider } from "../../dev/sandbox-provider.ts";
import {
  authorizationUrl,
  call,
  clientId,
  connect,
  exchange,
  expectInvalidGrant,
  newDirectory,
  post,
  readTokens,
  redirectUri,
  refresh,
  refreshWell,
  startSandbox,
} from "../support/sandbox.ts";

async function statsOf(provider: SandboxProvider) {
  return (await fetch(`${provider.url}/stats`)).json();
}

test("allowing leads to the redirect URI with code, state and issuer, and the code to tokens that the API takes", async () => {
  const provider = await startSandbox();
  const verifier = randomBytes(32).toString("base64url");
  const back = new URL(
    await answerConsent({
      authorizationUrl: authorizationUrl(provider.url, verifier, { scope: "read offline_access", prompt: "consent" }),
      decision: "allow",
      name: "Ada Lovelace",
    }),
  );
  expect(back.origin + back.pathname).toBe(redirectUri);
  expect(back.searchParams.get("state")).toBe("the-state");
  expect(back.searchParams.get("iss")).toBe(provider.url);
  const response = await exchange(provider.url, back.searchParams.get("code") ?? "", verifier);
  const tokens = await readTokens(response);
  expect(tokens).toMatchObject({ token_type: "Bearer", expires_in: 600, scope: "read offline_access" });
  expect(tokens.refresh_token).toMatch(/./);
  const me = await call(provider, "/me", tokens.access_token);
  expect(await me.json()).toEqual({ sub: expect.stringMatching(/^user_/), name: "Ada Lovelace" });
});

test("denying leads to the redirect URI with access_denied", async () => {
  const { url } = await startSandbox();
  const back = new URL(
    await answerConsent({ authorizationUrl: authorizationUrl(url, "v".repeat(43)), decision: "deny" }),
  );
  expect(back.origin + back.pathname).toBe(redirectUri);
  expect(Object.fromEntries(back.searchParams)).toMatchObject({ error: "access_denied", state: "the-state", iss: url });
  expect(back.searchParams.has("code")).toBe(false);
});

test("an authorization request without PKCE, with plain PKCE or to a foreign redirect URI is refused", async () => {
  const { url } = await startSandbox();
  const ask = (more: Record<string, string | undefined>) =>
    answerConsent({ authorizationUrl: authorizationUrl(url, "v".repeat(43), more), decision: "allow" });
  for (const more of [
    { code_challenge: undefined, code_challenge_method: undefined },
    { code_challenge_method: "plain" },
  ]) {
    const back = new URL(await ask(more));
    expect(back.searchParams.get("error")).toBe("invalid_request");
  }
  await expect(ask({ redirect_uri: "http://127.0.0.1:9/other" })).rejects.toThrow(/redirect_uri/);
});

test("a code is refused with another verifier, and another client secret is refused", async () => {
  const provider = await startSandbox();
  const verifier = "v".repeat(43);
  const back = await answerConsent({ authorizationUrl: authorizationUrl(provider.url, verifier), decision: "allow" });
  const code = new URL(back).searchParams.get("code") ?? "";
  await expectInvalidGrant(await exchange(provider.url, code, "w".repeat(43)));
  const form = { grant_type: "refresh_token", refresh_token: "x" };
  expect((await post(`${provider.url}/token`, form, `Basic ${btoa(`${clientId}:wrong`)}`)).status).toBe(401);
});

test("a second sign-in in the same browser can be another person", async () => {
  const provider = await startSandbox();
  const cookies = new Map<string, string>();
  const ada = await connect(provider, { name: "Ada Lovelace", cookies });
  expect(cookies.has("_session")).toBe(true);
  const grace = await connect(provider, { name: "Grace Hopper", cookies });
  const names = await Promise.all(
    [ada, grace].map(async ({ access_token: token }) => (await call(provider, "/me", token)).json()),
  );
  expect(names).toMatchObject([{ name: "Ada Lovelace" }, { name: "Grace Hopper" }]);
});

test("the page shows who asks and for what, and refuses a name that is none", async () => {
  const { url } = await startSandbox();
  const redirect = await fetch(authorizationUrl(url, "v".repeat(43)), { redirect: "manual" });
  const cookie = redirect.headers
    .getSetCookie()
    .map((line) => line.split(";")[0])
    .join("; ");
  const pageUrl = new URL(redirect.headers.get("location") ?? "", url);
  const page = await (await fetch(pageUrl, { headers: { cookie } })).text();
  expect(page).toContain(clientId);
  expect(page).toContain("openid profile read");
  const body = new URLSearchParams({ name: "<script>", decision: "allow" });
  const answer = await fetch(pageUrl, { method: "POST", headers: { cookie }, body, redirect: "manual" });
  expect(answer.status).toBe(400);
  expect((await fetch(pageUrl)).status).toBe(400);
});

test("each refresh gives a new refresh token, and a used one ends the whole grant", async () => {
  const provider = await startSandbox();
  const [first, other] = [await connect(provider), await connect(provider)];
  const second = await refreshWell(provider, first.refresh_token);
  expect(second.refresh_token).not.toBe(first.refresh_token);
  const third = await refreshWell(provider, second.refresh_token);
  expect((await call(provider, "/me", third.access_token)).status).toBe(200);

  await expectInvalidGrant(await refresh(provider, first.refresh_token));
  await expectInvalidGrant(await refresh(provider, third.refresh_token));
  for (const { access_token: token } of [first, second, third]) {
    expect((await call(provider, "/me", token)).status).toBe(401);
  }
  // Another grant of the same person and client lives on.
  expect((await call(provider, "/me", other.access_token)).status).toBe(200);
  await refreshWell(provider, other.refresh_token);
  expect(await statsOf(provider)).toEqual({
    tokenRequests: { authorization_code: { success: 2 }, refresh_token: { success: 3, invalid_grant: 2 } },
    revocationRequests: 0,
    familiesRevokedByReuse: 1,
  });
});

test("of many refreshes with one token at the same time one succeeds, and the others are seen as reuse", async () => {
  // With a file, since every refresh then waits in its middle.
  const provider = await startSandbox({ storeFile: join(newDirectory(), "sandbox.json") });
  const { refresh_token: token } = await connect(provider);
  // Connections are opened first, so that the requests do arrive together.
  const unknown = await Promise.all(Array.from({ length: 8 }, () => refresh(provider, "unknown")));
  await Promise.all(unknown.map((response) => response.text()));
  const responses = await Promise.all(Array.from({ length: 8 }, () => refresh(provider, token)));
  expect(responses.map(({ status }) => status).sort()).toEqual([200, ...Array(7).fill(400)]);
  const [winner] = responses.filter(({ status }) => status === 200);
  if (winner === undefined) throw new Error("no request succeeded");
  const tokens = await readTokens(winner);
  await expectInvalidGrant(await refresh(provider, tokens.refresh_token));
  expect((await call(provider, "/me", tokens.access_token)).status).toBe(401);
  expect(provider.stats.familiesRevokedByReuse).toBeGreaterThanOrEqual(1);
});

test("after revocation the API refuses the access token and the refresh token is dead", async () => {
  const provider = await startSandbox();
  const tokens = await connect(provider);
  const revoke = (form: Record<string, string>) => post(`${provider.url}/token/revocation`, form);
  expect((await revoke({ token: tokens.refresh_token, token_type_hint: "refresh_token" })).status).toBe(200);
  const refused = await call(provider, "/me", tokens.access_token);
  expect(refused.status).toBe(401);
  expect(refused.headers.get("www-authenticate")).toBe('Bearer realm="sandbox", error="invalid_token"');
  await expectInvalidGrant(await refresh(provider, tokens.refresh_token));
  // A token that nobody knows is revoked just as well (RFC 7009, 2.2).
  expect((await revoke({ token: "unknown" })).status).toBe(200);
  expect(provider.stats.revocationRequests).toBe(2);
});

test("an access token ends at its time", async () => {
  const provider = await startSandbox({ accessTokenSeconds: 1 });
  const tokens = await connect(provider);
  expect(tokens.expires_in).toBe(1);
  await expect.poll(async () => (await call(provider, "/me", tokens.access_token)).status, { timeout: 5000 }).toBe(401);
});

test("access tokens can be made invalid at once, and the lifetime of new ones changed", async () => {
  const provider = await startSandbox();
  const tokens = await connect(provider);
  const admin = (path: string, body?: string) =>
    fetch(`${provider.url}/admin/${path}`, { method: "POST", ...(body !== undefined && { body }) });
  expect(await (await admin("expire-access-tokens")).json()).toEqual({ expired: 1 });
  expect((await call(provider, "/me", tokens.access_token)).status).toBe(401);

  expect((await admin("access-token-seconds", '{"seconds":7}')).status).toBe(200);
  const refreshed = await refreshWell(provider, tokens.refresh_token);
  expect(refreshed.expires_in).toBe(7);
  expect((await call(provider, "/me", refreshed.access_token)).status).toBe(200);
  for (const body of ['{"seconds":0}', '{"seconds":"7"}', "seven"]) {
    expect((await admin("access-token-seconds", body)).status).toBe(400);
  }
  expect(await (await admin("access-token-seconds", "{}")).json()).toEqual({
    error: expect.stringMatching(/^seconds /),
  });
});

test("settings that cannot work are refused by name", async () => {
  await expect(startSandbox({ accessTokenSeconds: 0 })).rejects.toThrow(/^accessTokenSeconds /);
  const provider = await startSandbox();
  await expect(startSandbox({ port: Number(new URL(provider.url).port) })).rejects.toThrow(/EADDRINUSE/);
});
