// The tokens over REST: OAuth 2.0 client credentials for access tokens, and the connect tokens of users.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { z } from "zod";
import { StatusError } from "#libs/errors.ts";
import type { Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { type AppClient, appSlugOf } from "./apps.ts";
import { appJson, environmentJson, isoOrNull } from "./json-shapes.ts";
import { bodyOf, callerCall, ownCall, pathParameter, queryOf, scopeOf, single } from "./requests.ts";

type Methods = "issueAccessToken" | "createConnectToken" | "validateConnectToken";

/** What is asked about tokens. */
export type TokenClient = AppClient & Pick<Client<typeof AccountServiceDefinition>, Methods>;

const grantBody = z.object({
  grant_type: z.string(),
  client_id: z.string().min(1).max(100).optional(),
  client_secret: z.string().min(1).max(200).optional(),
  scope: z.string().max(1000).nullish(),
});

const uri = z.string().max(2048).nullish();
const connectTokenBody = z.object({
  external_user_id: z.string().min(1).max(250),
  allowed_origins: z.array(z.string()).max(50).nullish(),
  webhook_uri: uri,
  success_redirect_uri: uri,
  error_redirect_uri: uri,
  expires_in: z.int().min(1).max(14_400).nullish(),
  scope: z.string().max(1000).nullish(),
  allow_progressive_scopes: z.boolean().nullish(),
  require_verification: z.boolean().nullish(),
  app_id: z.string().max(100).nullish(),
  oauth_app_id: z.string().max(64).nullish(),
});

/** Adds the routes. */
export function addTokenRoutes(app: FastifyInstance, account: TokenClient): void {
  app.post("/v1/oauth/token", async (request, reply) => {
    const parsed = grantBody.safeParse(
      request.body instanceof URLSearchParams ? Object.fromEntries(request.body) : request.body,
    );
    if (!parsed.success) return oauthError(reply, 400, "invalid_request");
    if (parsed.data.grant_type !== "client_credentials") return oauthError(reply, 400, "unsupported_grant_type");
    const basic = basicCredentials(request);
    const clientId = basic?.clientId ?? parsed.data.client_id;
    const clientSecret = basic?.clientSecret ?? parsed.data.client_secret;
    if (clientId === undefined || clientSecret === undefined) return oauthError(reply, 401, "invalid_client");
    try {
      const grant = { $case: "clientCredentials", value: { clientId, clientSecret } } as const;
      const issued = await account.issueAccessToken({ grant, scope: parsed.data.scope ?? "" }, ownCall(request));
      const lifetimeMs = (issued.expireTime?.getTime() ?? 0) - Date.now();
      const expires_in = Math.max(0, Math.round(lifetimeMs / 1000));
      return reply.send({ access_token: issued.accessToken, token_type: "Bearer", expires_in });
    } catch (error) {
      if (!(error instanceof StatusError)) throw error;
      if (error.code === "UNAUTHENTICATED") return oauthError(reply, 401, "invalid_client");
      if (error.code === "PERMISSION_DENIED") return oauthError(reply, 400, "unauthorized_client");
      if (error.code !== "INVALID_ARGUMENT") throw error;
      const isScope = error.violations.some(({ field }) => field === "scope");
      return oauthError(reply, 400, isScope ? "invalid_scope" : "invalid_request");
    }
  });

  app.post("/v1/connect/:project_id/tokens", async (request) => {
    const body = bodyOf(connectTokenBody, request);
    const call = callerCall(request);
    const made = await account.createConnectToken(
      {
        ...scopeOf(request),
        externalUserId: body.external_user_id,
        lifetimeSeconds: body.expires_in ?? 0,
        scope: body.scope ?? "",
        allowedOrigins: body.allowed_origins ?? [],
        successRedirectUri: body.success_redirect_uri ?? "",
        errorRedirectUri: body.error_redirect_uri ?? "",
        webhookUri: body.webhook_uri ?? "",
        appSlug: await appSlugOf(account, body.app_id ?? "", call),
        oauthAppId: body.oauth_app_id ?? "",
        allowProgressiveScopes: body.allow_progressive_scopes ?? false,
        requireVerification: body.require_verification ?? false,
      },
      call,
    );
    return { token: made.token, expires_at: isoOrNull(made.expireTime), connect_link_url: made.connectLinkUrl };
  });

  // The token in the path is all the right that is needed; clients send a bearer too, and it is not looked at.
  app.get("/v1/connect/tokens/:ctok/validate", async (request) => {
    const query = queryOf(request);
    const answer = await account.validateConnectToken(
      {
        connectToken: pathParameter(request, "ctok"),
        appSlug: single(query, "app_id"),
        accountId: single(query, "account_id"),
        oauthAppId: single(query, "oauth_app_id"),
        appOverrideId: single(query, "app_override_id"),
      },
      ownCall(request),
    );
    return {
      success: answer.valid,
      error: answer.error || null,
      app: answer.app === undefined ? null : appJson(answer.app),
      oauth_app_id: answer.oauthAppId || null,
      app_override_id: answer.appOverrideId || null,
      app_override_field_names: answer.appOverrideFieldNames,
      oauth_app_workday_official: null,
      oauth_app_connect_base_url: null,
      project_id: answer.projectId || null,
      project_environment: environmentJson(answer.environment),
      project_app_name: answer.projectAppName || null,
      project_support_email: answer.projectSupportEmail || null,
      success_redirect_uri: answer.successRedirectUri || null,
      error_redirect_uri: answer.errorRedirectUri || null,
    };
  });
}

// RFC 6749, 5.2.
function oauthError(reply: FastifyReply, status: number, error: string): FastifyReply {
  if (status === 401) reply.header("www-authenticate", "Basic");
  return reply.code(status).send({ error });
}

// RFC 6749, 2.3.1: both parts are form-encoded before they are joined.
function basicCredentials({ headers }: FastifyRequest): { clientId: string; clientSecret: string } | undefined {
  const encoded = /^Basic +([A-Za-z0-9+/]+=*)$/i.exec(headers.authorization ?? "")?.[1];
  const [, id, secret] = /^([^:]*):(.*)$/.exec(Buffer.from(encoded ?? "", "base64").toString()) ?? [];
  if (id === undefined || secret === undefined) return undefined;
  const decode = (part: string) => new URLSearchParams(`v=${part.replaceAll("&", "%26")}`).get("v") ?? "";
  return { clientId: decode(id), clientSecret: decode(secret) };
}
