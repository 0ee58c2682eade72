// The request by which a provider is told that a token is over: RFC 7009, or what the app's entry says instead; and what the
// answer means. Who repeats it, and for how long, is in revocation-job.ts.
import type * as oauth from "oauth4webapi";
import { EgressError } from "#libs/egress-error.ts";
import { authenticationsOf, clientOf, type ProviderContext, serverOf } from "./provider.ts";
import { endpointUrl, type ProviderAccess, type ProviderRequest, readJson, sendToProvider } from "./provider-http.ts";
import { errorName } from "./token-answers.ts";

// Nothing is lost by asking again, and a provider that is silent must not hold up the others' revocations.
const revocationTimeoutMs = 10_000;

/** What a revocation came to. */
export type RevocationOutcome =
  /** After so many of the client's secrets were refused. */
  | { readonly kind: "revoked"; readonly refusedSecrets: number }
  | { readonly kind: "retry"; readonly error: string; readonly retryAfterSeconds?: number }
  /** For good: the app has no way to revoke, or none for this kind of token, or the request is wrong. */
  | { readonly kind: "refused"; readonly error: string };

/**
 * Asks the provider to revoke one token, by RFC 7009 or in the app's own way. A token that the provider does not know is
 * revoked.
 */
export async function revokeToken(
  access: ProviderAccess,
  context: ProviderContext,
  { token, hint }: { token: string; hint: "refresh_token" | "access_token" },
): Promise<RevocationOutcome> {
  const { revoke } = context.app.oauth2;
  if (revoke === undefined || !revoke.tokens.includes(hint))
    return { kind: "refused", error: "REVOCATION_UNSUPPORTED" };
  const bounded = { ...access, timeoutMs: access.timeoutMs ?? revocationTimeoutMs };
  let outcome: RevocationOutcome = { kind: "retry", error: "NO_CLIENT_SECRET" };
  for (const [refusedSecrets, authentication] of revocationAuthentications(context, token).entries()) {
    try {
      const { url, ...request } = await revocationRequest(context, { token, hint, authentication });
      const response = await sendToProvider(bounded, context.app, url, request);
      outcome = judgeRevocation(response, await readJson(response), refusedSecrets);
    } catch (failure) {
      if (!(failure instanceof EgressError)) throw failure;
      return { kind: "retry", error: `EGRESS_${failure.kind.toUpperCase()}` };
    }
    const isClientRefused = outcome.kind === "retry" && ["invalid_client", "HTTP_401"].includes(outcome.error);
    if (!isClientRefused) break;
  }
  return outcome;
}

/** The request in the form that the app's entry says: RFC 7009 unless it says otherwise. */
async function revocationRequest(
  context: ProviderContext,
  { token, hint, authentication }: { token: string; hint: string; authentication: oauth.ClientAuth },
): Promise<ProviderRequest & { readonly url: string }> {
  const { revoke } = context.app.oauth2;
  if (revoke === undefined) throw new Error("the app has no revocation endpoint");
  const { method, content_type, token_parameter, parameters } = revoke;
  const body = new URLSearchParams({ ...parameters, [token_parameter]: token });
  if (token_parameter === "token") body.set("token_type_hint", hint);
  const headers = new Headers({ accept: "application/json" });
  await authentication(serverOf(context), clientOf(context.client), body, headers);
  const url = new URL(endpointUrl(revoke.url, context.fields));
  if (method === "GET") {
    for (const [name, value] of body) url.searchParams.set(name, value);
    return { url: url.href, method, headers: Object.fromEntries(headers) };
  }
  const isJson = content_type === "json";
  headers.set("content-type", isJson ? "application/json" : "application/x-www-form-urlencoded");
  const content = isJson ? JSON.stringify(Object.fromEntries(body)) : body.toString();
  return { url: url.href, method, headers: Object.fromEntries(headers), body: content };
}

function revocationAuthentications(context: ProviderContext, token: string): readonly oauth.ClientAuth[] {
  const { revoke, token: tokenEndpoint } = context.app.oauth2;
  const way = revoke?.client_authentication ?? tokenEndpoint.client_authentication;
  if (way !== "bearer") return authenticationsOf(context.client, way);
  return [(_server, _client, _body, headers) => headers.set("authorization", `Bearer ${token}`)];
}

/** An answer that is good by its status and names an error is none: some providers say everything with 200. */
function judgeRevocation(response: Response, body: unknown, refusedSecrets: number): RevocationOutcome {
  const error = errorOf(body);
  if (error === "invalid_token" || (response.ok && error === undefined)) return { kind: "revoked", refusedSecrets };
  if (error === "unsupported_token_type") return { kind: "refused", error: "REVOCATION_UNSUPPORTED" };
  if (error === "invalid_request" || error === "unauthorized_client") return { kind: "refused", error };
  const retryAfterSeconds = Number(response.headers.get("retry-after") ?? 0);
  return {
    kind: "retry",
    error: error ?? `HTTP_${response.status}`,
    ...(retryAfterSeconds > 0 && { retryAfterSeconds }),
  };
}

function errorOf(body: unknown): string | undefined {
  const { error } = Object(body) as { readonly error?: unknown };
  return typeof error === "string" ? errorName(error) : undefined;
}
