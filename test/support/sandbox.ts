// A sandbox provider for a test and the client side of its OAuth flow, by plain HTTP. What a test starts here ends with it.
import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect } from "vitest";
import { answerConsent } from "../../dev/sandbox-consent.ts";
import { startSandboxProvider } from "../../dev/sandbox-provider.ts";

export const clientId = "deputy-test";
export const clientSecret = "a secret: with % and +";
// Nothing listens there, and nothing has to: the way back ends at its address.
export const redirectUri = "http://127.0.0.1:9/callback";

export const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

export function newDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "deputy-sandbox-"));
  cleanups.push(() => rmSync(directory, { recursive: true }));
  return directory;
}

export async function startSandbox(more: { port?: number; storeFile?: string; accessTokenSeconds?: number } = {}) {
  const options = { port: 0, clientId, clientSecret, redirectUris: [redirectUri], accessTokenSeconds: 600 };
  const provider = await startSandboxProvider({ ...options, ...more });
  cleanups.push(() => provider.stop());
  return provider;
}

export interface Tokens {
  readonly access_token: string;
  readonly refresh_token: string;
  readonly expires_in: number;
}

export async function readTokens(response: Response): Promise<Tokens> {
  expect(response.status).toBe(200);
  return (await response.json()) as Tokens;
}

export const basic = `Basic ${Buffer.from([clientId, clientSecret].map(encodeURIComponent).join(":")).toString("base64")}`;

export function post(url: string, form: Record<string, string>, authorization = basic): Promise<Response> {
  return fetch(url, { method: "POST", headers: { authorization }, body: new URLSearchParams(form) });
}

export function authorizationUrl(url: string, verifier: string, more: Record<string, string | undefined> = {}): string {
  const parameters = {
    response_type: "code",
    client_id: clientId,
    redirect_uri: redirectUri,
    scope: "openid profile read",
    state: "the-state",
    code_challenge: createHash("sha256").update(verifier).digest("base64url"),
    code_challenge_method: "S256",
    ...more,
  };
  return `${url}/auth?${new URLSearchParams(JSON.parse(JSON.stringify(parameters)))}`;
}

export function exchange(url: string, code: string, verifier: string): Promise<Response> {
  const form = { grant_type: "authorization_code", code, redirect_uri: redirectUri, code_verifier: verifier };
  return post(`${url}/token`, form);
}

export async function connect(
  { url }: { url: string },
  person: { name?: string; cookies?: Map<string, string> } = {},
): Promise<Tokens> {
  const verifier = randomBytes(32).toString("base64url");
  const back = await answerConsent({ authorizationUrl: authorizationUrl(url, verifier), decision: "allow", ...person });
  const response = await exchange(url, new URL(back).searchParams.get("code") ?? "", verifier);
  return readTokens(response);
}

export function refresh({ url }: { url: string }, refreshToken: string): Promise<Response> {
  return post(`${url}/token`, { grant_type: "refresh_token", refresh_token: refreshToken });
}

export async function refreshWell(provider: { url: string }, refreshToken: string): Promise<Tokens> {
  return readTokens(await refresh(provider, refreshToken));
}

export function call(
  provider: { apiUrl: string },
  path: string,
  token: string,
  init: RequestInit = {},
): Promise<Response> {
  return fetch(`${provider.apiUrl}${path}`, { ...init, headers: { authorization: `Bearer ${token}` } });
}

export async function expectInvalidGrant(response: Response): Promise<void> {
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({ error: "invalid_grant" });
}
