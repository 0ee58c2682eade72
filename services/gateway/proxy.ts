// Forwarded requests over REST. The target is base64 in the last segment of the path, the caller's headers come with a
// prefix, the body is passed on unread. The upstream's status and body go back as they are; of its headers, those that would
// speak for this server's own origin, or make a client act, do not.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { decodeTargetUrl } from "#libs/encoded-url.ts";
import { StatusError } from "#libs/errors.ts";
import type { Client } from "#libs/rpc.ts";
import { denialError } from "#libs/verdict.ts";
import type { ForwardResponse, ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { proxyHttpError } from "./http-errors.ts";
import { callerCall, pathParameter, queryOf, scopeOf, single } from "./requests.ts";

/** What is asked of the proxy. */
export type ProxyClient = Pick<Client<typeof ProxyServiceDefinition>, "forward">;

const headerPrefix = "x-pd-proxy-";
const maxBodyBytes = 8 * 1024 * 1024;
const timeoutMs = 30_000;
// The proxy's own time-out comes first, so that the upstream is blamed where the upstream is slow.
const callTimeoutMs = timeoutMs + 2000;
const methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

// Clients with a connect token have no project to name. Some leave its place empty (`/v1/connect//proxy/`): the first of
// these matches that too, with an empty project.
const paths = ["/v1/connect/:project_id/proxy/:url_64", "/v1/connect/proxy/:url_64"];

const droppedHeaders = new Set([
  "alt-svc",
  "clear-site-data",
  "content-length",
  "content-security-policy",
  "content-security-policy-report-only",
  "nel",
  "public-key-pins",
  "refresh",
  "report-to",
  "reporting-endpoints",
  "service-worker-allowed",
  "sourcemap",
  "strict-transport-security",
  "x-content-type-options",
]);

// A web server in front of this one (nginx, Apache, lighttpd, Caddy) takes these for orders to send a file of its own.
const orderToFrontServer = /^x-(accel-|sendfile|lighttpd-|reproxy-)/;

/** Adds the routes, in a scope of their own: here a body is bytes, whatever its type. */
export function addProxyRoutes(app: FastifyInstance, proxy: ProxyClient): void {
  app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("*", { parseAs: "buffer", bodyLimit: maxBodyBytes }, (_request, body, done) =>
      done(null, body),
    );
    for (const url of paths) {
      scope.route({ method: methods, url, handler: (request, reply) => forward(proxy, request, reply) });
    }
  });
}

async function forward(proxy: ProxyClient, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
  const leaving = new AbortController();
  reply.raw.once("close", () => leaving.abort());
  try {
    const target = decodeTargetUrl(pathParameter(request, "url_64"));
    if (target.kind === "deny") throw denialError(target);
    const query = queryOf(request);
    const body = Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0);
    const answer = await proxy.forward(
      {
        ...scopeOf(request),
        externalUserId: single(query, "external_user_id"),
        accountId: single(query, "account_id"),
        method: request.method,
        url: target.text,
        headers: forwardedHeaders(request, body),
        body,
        timeoutMs,
      },
      { ...callerCall(request, callTimeoutMs), signal: leaving.signal },
    );
    return pass(answer, request, reply);
  } catch (error) {
    if (!(error instanceof StatusError)) throw error;
    const { status, headers, body } = proxyHttpError(error);
    return reply.code(status).headers(headers).send(body);
  }
}

function forwardedHeaders(request: FastifyRequest, body: Buffer): { name: string; value: string }[] {
  const raw = request.raw.rawHeaders;
  const headers: { name: string; value: string }[] = [];
  for (let index = 0; index + 1 < raw.length; index += 2) {
    const name = raw[index]?.toLowerCase() ?? "";
    if (name.startsWith(headerPrefix)) {
      headers.push({ name: name.slice(headerPrefix.length), value: raw[index + 1] ?? "" });
    }
  }
  // A body is of the type it came with, unless the caller says otherwise for the upstream.
  const type = request.headers["content-type"];
  if (body.length > 0 && type !== undefined && !headers.some(({ name }) => name === "content-type")) {
    headers.push({ name: "content-type", value: type });
  }
  return headers;
}

function pass({ status, headers, body }: ForwardResponse, { method }: FastifyRequest, reply: FastifyReply) {
  const passed = new Map<string, string[]>();
  for (const { name, value } of headers) {
    // HEAD alone answers with the length of a body that is not there.
    if (droppedHeaders.has(name) && !(name === "content-length" && method === "HEAD")) continue;
    if (name.startsWith("access-control-") || orderToFrontServer.test(name)) continue;
    const renamed = renameHeader(name, status);
    passed.set(renamed, [...(passed.get(renamed) ?? []), value]);
  }
  // An upstream's page must not run as this server's own.
  passed.set("x-content-type-options", ["nosniff"]);
  passed.set("content-security-policy", ["sandbox; default-src 'none'"]);
  const disposition = passed.get("content-disposition")?.[0];
  if (disposition === undefined || !/^attachment\b/i.test(disposition)) {
    passed.set("content-disposition", ["attachment"]);
  }
  for (const [name, values] of passed) reply.header(name, values.length === 1 ? values[0] : values);
  return reply.code(status).send(body.length > 0 ? body : undefined);
}

// A client would follow a redirect by itself and take its prefixed headers along.
function renameHeader(name: string, status: number): string {
  if (name === "location" && status >= 300 && status < 400) return "x-upstream-location";
  return name === "x-request-id" ? "x-upstream-request-id" : name;
}
