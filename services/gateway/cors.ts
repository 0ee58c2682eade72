// Which pages a browser lets call the REST API: with a connect token, those of the token's allowed origins. A preflight brings
// no token, so it is answered for any origin and promises nothing; the request itself is judged. An access token belongs on a
// server: no page is ever told that it may read an answer to one.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { StatusError } from "#libs/errors.ts";
import { digest } from "#libs/ids.ts";
import type { Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { bearerOf, ownCall } from "./requests.ts";

/** What is asked about tokens. */
export type CorsClient = Pick<Client<typeof AccountServiceDefinition>, "validateConnectToken">;

// A token's origins never change; the account service judges the token itself at each request.
const keptMs = 60_000;
const keptTokens = 1_000;
const preflightSeconds = "600";
const exposedHeaders =
  "retry-after, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, x-request-id, x-upstream-location";

/** Adds it before the routes. */
export function addCors(app: FastifyInstance, account: CorsClient, gatewayUrl: string): void {
  const ownOrigin = new URL(gatewayUrl).origin;
  const originsOf = rememberOrigins(account);
  app.addHook("onRequest", async (request, reply) => {
    const { origin } = request.headers;
    if (origin === undefined || !/^\/+v1\//.test(request.raw.url ?? "")) return;
    reply.header("vary", "origin");
    if (isPreflight(request)) return answerPreflight(request, reply, origin);
    const token = bearerOf(request);
    if (origin === ownOrigin || token === undefined || !token.startsWith("ctok_")) return;
    const origins = await originsOf(token, request);
    // Of a token that is none the account service says so.
    if (origins === undefined) return;
    if (!origins.includes(origin)) throw originNotAllowed();
    reply.headers({ "access-control-allow-origin": origin, "access-control-expose-headers": exposedHeaders });
  });
}

// OPTIONS without this header is a request of its own: the proxy forwards it.
function isPreflight({ method, headers }: FastifyRequest): boolean {
  return method === "OPTIONS" && headers["access-control-request-method"] !== undefined;
}

function answerPreflight(request: FastifyRequest, reply: FastifyReply, origin: string): FastifyReply {
  const asked = String(request.headers["access-control-request-headers"] ?? "");
  return reply
    .code(204)
    .headers({
      "access-control-allow-origin": origin,
      "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
      "access-control-max-age": preflightSeconds,
      // Names of headers, or nothing.
      ...(/^[\w!#$%&'*+.^`|~, -]{1,4000}$/.test(asked) && { "access-control-allow-headers": asked }),
    })
    .send();
}

/** The origins of a token, kept for a while by its digest; undefined for a token that is none. */
function rememberOrigins(account: CorsClient) {
  const kept = new Map<string, { readonly origins: readonly string[]; readonly untilMs: number }>();
  return async (token: string, request: FastifyRequest): Promise<readonly string[] | undefined> => {
    const key = digest(token).toString("base64");
    const known = kept.get(key);
    if (known !== undefined && known.untilMs > Date.now()) return known.origins;
    const { allowedOrigins, projectId } = await account.validateConnectToken({ connectToken: token }, ownCall(request));
    if (allowedOrigins.length === 0 && projectId === "") return undefined;
    for (const oldest of kept.keys()) {
      if (kept.size < keptTokens) break;
      kept.delete(oldest);
    }
    kept.set(key, { origins: allowedOrigins, untilMs: Date.now() + keptMs });
    return allowedOrigins;
  };
}

function originNotAllowed(): StatusError {
  const message = "Pages of this origin may not use the connect token: name the origin in allowed_origins.";
  return new StatusError("PERMISSION_DENIED", "ORIGIN_NOT_ALLOWED", message);
}
