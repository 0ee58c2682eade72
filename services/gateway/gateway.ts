// The HTTP edge: REST for existing clients, the connect page, the OAuth callback. It holds no secret and no state; it passes
// the caller's token on and translates. What all requests share stands here: request ids, the log line, bodies, errors.
// A path may hold a token and a query may hold anything, so the log line has the route's pattern in place of the path.
import { type FastifyInstance, type FastifyReply, fastify } from "fastify";
import { invalidField, StatusError } from "#libs/errors.ts";
import { soundRequestId } from "#libs/ids.ts";
import type { Logger } from "#libs/log.ts";
import { type AccountClient, addAccountRoutes } from "./accounts.ts";
import { addAppCategoryRoutes } from "./app-categories.ts";
import { type AppOverrideClient, addAppOverrideRoutes } from "./app-overrides.ts";
import { addAppRoutes } from "./apps.ts";
import { addConnectPage, type ConnectClient } from "./connect-page.ts";
import { addConnectionRoutes, type ConnectionClient } from "./connections.ts";
import { addCors } from "./cors.ts";
import { addHealthRoute, type HealthClient } from "./health.ts";
import { httpError } from "./http-errors.ts";
import { addOauthAppRoutes, type OauthAppClient } from "./oauth-apps.ts";
import { addOauthCallback, type CallbackClient } from "./oauth-callback.ts";
import { addProjectRoutes, type ProjectClient } from "./projects.ts";
import { addProxyRoutes, type ProxyClient } from "./proxy.ts";
import { hostHeaderFault } from "./requests.ts";
import { addTokenRoutes, type TokenClient } from "./tokens.ts";
import { addUserRoutes, type UserClient } from "./users.ts";
import { addWebhookRoutes, type WebhookClient } from "./webhooks.ts";

/** What the gateway works with. */
export interface GatewayCollaborators {
  readonly account: AccountClient &
    TokenClient &
    ConnectClient &
    CallbackClient &
    ConnectionClient &
    OauthAppClient &
    AppOverrideClient &
    ProjectClient &
    UserClient &
    WebhookClient;
  readonly proxy: ProxyClient;
  readonly health: Readonly<Record<string, HealthClient>>;
  /** Where browsers reach this gateway. */
  readonly gatewayUrl: string;
  readonly log: Logger;
}

// A target of 8 KiB in base64, and 64 headers of a common size beside it.
const maxHeaderBytes = 64 * 1024;
const maxPathParameterLength = 16 * 1024;
// Large enough for the largest of keys; forwarded bodies have a limit of their own.
const maxBodyBytes = 1024 * 1024;
const requestTimeoutMs = 60_000;
// A caller who reads no more holds an answer of up to 8 MiB; longer than any route waits for the services.
const idleTimeoutMs = 60_000;

/** Builds the server; `listen` starts it. */
export function buildGateway({ account, proxy, health, gatewayUrl, log }: GatewayCollaborators): FastifyInstance {
  const app = fastify({
    logger: false,
    bodyLimit: maxBodyBytes,
    requestTimeout: requestTimeoutMs,
    connectionTimeout: idleTimeoutMs,
    exposeHeadRoutes: false,
    routerOptions: { maxParamLength: maxPathParameterLength },
    http: { maxHeaderSize: maxHeaderBytes },
    genReqId: ({ headers }) => soundRequestId(headers["x-request-id"]),
    frameworkErrors: (_error, _request, reply) => {
      const body = { error: "The path is not a valid URL path.", code: "PATH_INVALID" };
      (reply as FastifyReply).code(400).send(body);
    },
  });

  app.addHook("onRequest", async (request, reply) => {
    reply.header("x-request-id", request.id);
    const fault = hostHeaderFault(request);
    if (fault !== undefined) {
      // What is meant by the bytes behind such a request is anybody's guess.
      reply.header("connection", "close");
      throw invalidField("host", fault);
    }
  });
  app.addHook("onSend", async (_request, reply) => {
    if (!reply.hasHeader("cache-control")) reply.header("cache-control", "no-store");
  });
  app.addHook("onResponse", async (request, reply) => {
    log.info(
      {
        requestId: request.id,
        method: request.method,
        route: request.routeOptions.url,
        status: reply.statusCode,
        durationMs: Math.round(reply.elapsedTime * 10) / 10,
      },
      "request",
    );
  });
  addBodyParsers(app);

  app.setNotFoundHandler((_request, reply) =>
    reply.code(404).send({ error: "This server has no such endpoint.", code: "ENDPOINT_NOT_FOUND" }),
  );
  app.setErrorHandler((error, request, reply) => {
    const known = statusErrorOf(error);
    if (known === undefined || known.code === "INTERNAL") log.error({ requestId: request.id, err: error }, "failed");
    const { status, headers, body } = httpError(known ?? new StatusError("INTERNAL", "INTERNAL", "Internal error."));
    return reply
      .code(httpStatusOf(error) ?? status)
      .headers(headers)
      .send(body);
  });

  addCors(app, account, gatewayUrl);
  addTokenRoutes(app, account);
  addAccountRoutes(app, account);
  addConnectionRoutes(app, account);
  addAppRoutes(app, account);
  addWebhookRoutes(app, account);
  addAppCategoryRoutes(app, account);
  addOauthAppRoutes(app, account);
  addAppOverrideRoutes(app, account);
  addProjectRoutes(app, account);
  addUserRoutes(app, account);
  addProxyRoutes(app, proxy);
  addConnectPage(app, account, gatewayUrl);
  addOauthCallback(app, account, gatewayUrl);
  addHealthRoute(app, health);
  return app;
}

function addBodyParsers(app: FastifyInstance): void {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "string" }, (_request, body, done) => {
    if (body === "") return done(null, undefined);
    try {
      done(null, JSON.parse(String(body)));
    } catch {
      // Without the parser's own words: they quote the body.
      done(invalidField("body", "is not JSON"));
    }
  });
  app.addContentTypeParser("application/x-www-form-urlencoded", { parseAs: "string" }, (_request, body, done) =>
    done(null, new URLSearchParams(String(body))),
  );
}

// What the HTTP library itself refuses: a body that is too large, a media type that is not taken.
function httpStatusOf(error: unknown): number | undefined {
  const { statusCode, code } = error as { readonly statusCode?: unknown; readonly code?: unknown };
  const isRefusal = typeof code === "string" && code.startsWith("FST_") && typeof statusCode === "number";
  return isRefusal && statusCode >= 400 && statusCode < 500 ? statusCode : undefined;
}

function statusErrorOf(error: unknown): StatusError | undefined {
  if (error instanceof StatusError) return error;
  const status = httpStatusOf(error);
  if (status === undefined) return undefined;
  if (status === 413) return new StatusError("INVALID_ARGUMENT", "BODY_TOO_LARGE", "The body is too large.");
  if (status === 415) {
    return new StatusError("INVALID_ARGUMENT", "MEDIA_TYPE_NOT_SUPPORTED", "The body must be JSON or a form.");
  }
  return new StatusError("INVALID_ARGUMENT", "REQUEST_INVALID", "The request is not valid HTTP for this endpoint.");
}
