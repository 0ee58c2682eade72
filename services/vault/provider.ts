// The requests of OAuth 2.0 that the vault makes: authorization URL, code exchange, refresh. They are formed by oauth4webapi;
// revocations, for which apps have ways of their own, are in provider-revocation.ts. Id tokens are not read: who the user is
// at the provider is asked by identity.ts.
import * as oauth from "oauth4webapi";
import type { CatalogApp } from "#libs/catalog.ts";
import { EgressError } from "#libs/egress-error.ts";
import { capture } from "./grant-rules.ts";
import type { OauthClient } from "./oauth-clients.ts";
import { endpointUrl, type ProviderAccess, readJson, sendToProvider, totalTimeoutMs } from "./provider-http.ts";
import { judgeTokenAnswer, judgeTokenFailure, type TokenOutcome } from "./token-answers.ts";

/** An app with OAuth, a client of it, and the account's fields for templated endpoints. */
export interface ProviderContext {
  readonly app: OauthApp;
  readonly client: OauthClient;
  readonly fields: Readonly<Record<string, string>>;
}

/** An app that has the part for OAuth. */
export type OauthApp = CatalogApp & { readonly oauth2: NonNullable<CatalogApp["oauth2"]> };

/** Whether the app connects by OAuth. */
export function isOauthApp(app: CatalogApp): app is OauthApp {
  return app.oauth2 !== undefined;
}

/** What a token request came to, and how many of the client's secrets were refused before. */
export type TokenAttempt = TokenOutcome & { readonly refusedSecrets: number };

/** The page that the browser is sent to. The app's own parameters come first, so that they cannot replace ours. */
export async function authorizationUrl(
  { app, client, fields }: ProviderContext,
  asked: { redirectUri: string; scopes: readonly string[]; state: string; codeVerifier: string },
): Promise<string> {
  const { authorize, scope_separator } = app.oauth2;
  const url = new URL(endpointUrl(authorize.url, fields));
  const parameters = {
    ...authorize.parameters,
    response_type: "code",
    client_id: client.clientId,
    redirect_uri: asked.redirectUri,
    ...(asked.scopes.length > 0 && { scope: asked.scopes.join(scope_separator) }),
    state: asked.state,
    code_challenge: await oauth.calculatePKCECodeChallenge(asked.codeVerifier),
    code_challenge_method: "S256",
  };
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  return url.href;
}

/** What the redirect brought back. */
export interface Redirect {
  readonly state: string;
  readonly code: string;
  readonly error: string;
  readonly issuer: string;
  /** What else it brought. */
  readonly parameters: Readonly<Record<string, string>>;
}

/** The redirect as checked, or why it is refused, by a stable name. */
export function judgeRedirect(
  { app, client, fields }: ProviderContext,
  redirect: Redirect,
):
  | { readonly kind: "code"; readonly parameters: URLSearchParams }
  | { readonly kind: "refused"; readonly reason: string } {
  const { issuer } = app.oauth2;
  // Where the app names no issuer there is nothing to compare with, and `iss` says nothing.
  if (issuer !== undefined && redirect.issuer !== issuer) return { kind: "refused", reason: "ISSUER_MISMATCH" };
  if (redirect.error !== "") {
    const denied = redirect.error === "access_denied";
    return { kind: "refused", reason: denied ? "ACCESS_DENIED" : "PROVIDER_ERROR" };
  }
  if (redirect.code === "") return { kind: "refused", reason: "CODE_MISSING" };
  const parameters = new URLSearchParams({
    state: redirect.state,
    code: redirect.code,
    ...(issuer !== undefined && { iss: redirect.issuer }),
  });
  const server = serverOf({ app, client, fields });
  return { kind: "code", parameters: oauth.validateAuthResponse(server, clientOf(client), parameters, redirect.state) };
}

/** Exchanges a code that `judgeRedirect` let pass. */
export function exchangeCode(
  access: ProviderAccess,
  context: ProviderContext,
  grant: { parameters: URLSearchParams; redirectUri: string; codeVerifier: string },
): Promise<TokenAttempt> {
  return requestToken(access, context, (authentication, options) =>
    oauth.authorizationCodeGrantRequest(
      serverOf(context),
      clientOf(context.client),
      authentication,
      grant.parameters,
      grant.redirectUri,
      grant.codeVerifier,
      options,
    ),
  );
}

/** Spends a refresh token. */
export function refreshGrant(
  access: ProviderAccess,
  context: ProviderContext,
  refreshToken: string,
): Promise<TokenAttempt> {
  return requestToken(access, context, (authentication, options) =>
    oauth.refreshTokenGrantRequest(serverOf(context), clientOf(context.client), authentication, refreshToken, options),
  );
}

type Options = oauth.TokenEndpointRequestOptions;

async function requestToken(
  access: ProviderAccess,
  context: ProviderContext,
  send: (authentication: oauth.ClientAuth, options: Options) => Promise<Response>,
): Promise<TokenAttempt> {
  let outcome: TokenOutcome = { kind: "client_rejected", error: "NO_CLIENT_SECRET" };
  let refusedSecrets = 0;
  const endMs = performance.now() + (access.timeoutMs ?? totalTimeoutMs);
  // A client that is refused has spent nothing yet, so the next secret may be tried: rotation without downtime.
  for (const authentication of authenticationsOf(context.client, context.app.oauth2.token.client_authentication)) {
    outcome = await attempt(authentication);
    if (outcome.kind !== "client_rejected") break;
    refusedSecrets += 1;
  }
  return { ...outcome, refusedSecrets };

  async function attempt(authentication: oauth.ClientAuth): Promise<TokenOutcome> {
    try {
      const additionalParameters = context.app.oauth2.token.parameters;
      // One time for all attempts together: who waits for the lock, or takes over a claim, counts on it.
      const bounded = { ...access, timeoutMs: endMs - performance.now() };
      const response = await send(authentication, { ...optionsOf(bounded, context), additionalParameters });
      const answer = await readJson(response);
      const outcome = judgeTokenAnswer(response.status, answer, {
        retryAfter: response.headers.get("retry-after"),
        scopeSeparator: context.app.oauth2.scope_separator,
        errors: context.app.oauth2.errors,
      });
      if (outcome.kind !== "granted") return outcome;
      return { ...outcome, grant: { ...outcome.grant, captured: capture(context.app, "token", answer) } };
    } catch (failure) {
      if (failure instanceof EgressError) return judgeTokenFailure(failure);
      throw failure;
    }
  }
}

/** The ways to authenticate a client, one for each of its secrets, in the order in which they are tried. */
export function authenticationsOf(
  { secrets }: OauthClient,
  way: OauthApp["oauth2"]["token"]["client_authentication"],
): readonly oauth.ClientAuth[] {
  // A public client: PKCE alone proves that who exchanges the code is who asked for it.
  if (secrets.length === 0) return [oauth.None()];
  switch (way) {
    case "none":
      return [oauth.None()];
    case "client_secret_basic":
      return secrets.map((secret) => oauth.ClientSecretBasic(secret));
    case "client_secret_post":
      return secrets.map((secret) => oauth.ClientSecretPost(secret));
  }
}

/** The app's provider as the library wants it. */
export function serverOf({ app, fields }: ProviderContext): oauth.AuthorizationServer {
  const { issuer, token } = app.oauth2;
  return {
    // The library wants one; where the app names none, nothing is compared with it.
    issuer: issuer ?? new URL(endpointUrl(token.url, fields)).origin,
    authorization_response_iss_parameter_supported: issuer !== undefined,
    token_endpoint: endpointUrl(token.url, fields),
  };
}

/** The client as the library wants it. */
export function clientOf({ clientId }: OauthClient): oauth.Client {
  return { client_id: clientId };
}

function optionsOf(access: ProviderAccess, { app }: ProviderContext) {
  return {
    [oauth.customFetch]: (url: string, { method, headers, body }: oauth.CustomFetchOptions<"POST", URLSearchParams>) =>
      sendToProvider(access, app, url, { method, headers, body }),
  };
}
