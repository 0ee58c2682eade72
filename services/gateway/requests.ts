// What handlers read from an HTTP request: the caller's token, project and environment, query and body, each with a refusal
// that names what is wrong. The gateway judges no token: it passes the caller's on, and the services judge it.
import type { FastifyRequest } from "fastify";
import type { ZodType } from "zod";
import { invalidField, invalidFields, StatusError } from "#libs/errors.ts";
import type { CallOptions } from "#libs/rpc.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";

const callTimeoutMs = 10_000;

/** For calls that destroy credentials: they wait for every proxy that may hold a lease. */
export const revokeTimeoutMs = 30_000;

/** What is wrong with whom a request is for: two servers in a row must not each see another host in it (RFC 9112, 3.2). */
export function hostHeaderFault({ raw }: FastifyRequest): string | undefined {
  const { url = "", headers, rawHeaders } = raw;
  const names = rawHeaders.filter((_text, index) => index % 2 === 0);
  if (names.filter((name) => name.toLowerCase() === "host").length > 1) return "is given more than once";
  const [, authority] = /^[a-z]+:\/\/([^/?#]*)/i.exec(url) ?? [];
  return authority === undefined || authority === headers.host ? undefined : "is not that of the request line";
}

/** The caller's bearer token. */
export function bearerOf({ headers: { authorization } }: FastifyRequest): string | undefined {
  if (authorization === undefined) return undefined;
  const token = /^Bearer +([\x21-\x7e]{1,8192})$/i.exec(authorization)?.[1];
  if (token === undefined) {
    throw new StatusError("UNAUTHENTICATED", "TOKEN_INVALID", "The authorization header is not `Bearer <token>`.");
  }
  return token;
}

/** What goes along with a call in the gateway's own right. */
export function ownCall({ id }: FastifyRequest, timeoutMs = callTimeoutMs): CallOptions {
  return { deadlineMs: Date.now() + timeoutMs, requestId: id };
}

/** What goes along with a call in the caller's right. */
export function callerCall(request: FastifyRequest, timeoutMs = callTimeoutMs): CallOptions {
  const token = bearerOf(request);
  return { ...ownCall(request, timeoutMs), ...(token !== undefined && { token }) };
}

/** One decoded segment of the path. An empty one is refused: as a filter it would stand for everybody's. */
export function pathParameter(request: FastifyRequest, name: string): string {
  const value = segmentOf(request, name);
  if (value === "") throw invalidField(name, "is required");
  return value;
}

function segmentOf({ params }: FastifyRequest, name: string): string {
  return (params as Readonly<Record<string, string | undefined>>)[name] ?? "";
}

/** The project of the path, if any, and the environment of the header, if any; what is missing the token must name. */
export function scopeOf(request: FastifyRequest): { readonly projectId: string; readonly environment: Environment } {
  return { projectId: segmentOf(request, "project_id"), environment: environmentOf(request) };
}

function environmentOf(request: FastifyRequest): Environment {
  const value = request.headers["x-pd-environment"];
  if (value === undefined || value === "") return Environment.UNSPECIFIED;
  if (value === "development") return Environment.DEVELOPMENT;
  if (value === "production") return Environment.PRODUCTION;
  throw invalidField("x-pd-environment", "must be development or production");
}

/** The query of the request's URL. */
export function queryOf(request: FastifyRequest): URLSearchParams {
  const [, query = ""] = /\?([^#]*)/.exec(request.raw.url ?? "") ?? [];
  return new URLSearchParams(query);
}

/** One value of a query or a form; empty when not given. Two are refused: two readers could choose differently. */
export function single(query: URLSearchParams, name: string): string {
  const [value = "", ...more] = query.getAll(name);
  if (more.length > 0) throw invalidField(name, "is given more than once");
  return value;
}

/** Which page of a list is asked for. */
export function pageOf(query: URLSearchParams): { readonly pageSize: number; readonly pageToken: string } {
  const limit = single(query, "limit");
  const pageToken = single(query, "after");
  if (limit !== "" && !(/^\d{1,4}$/.test(limit) && Number(limit) >= 1 && Number(limit) <= 1000)) {
    throw invalidField("limit", "must be a whole number from 1 to 1000");
  }
  if (pageToken === "" && single(query, "before") !== "") {
    throw invalidField("before", "is not supported: page forwards with after");
  }
  return { pageSize: Number(limit), pageToken };
}

/** The JSON or form body, in the shape asked for. Says which field is wrong, never what it held. */
export function bodyOf<T>(schema: ZodType<T>, request: FastifyRequest): T {
  const { body } = request;
  const result = schema.safeParse(body instanceof URLSearchParams ? Object.fromEntries(body) : body);
  if (result.success) return result.data;
  throw invalidFields(
    result.error.issues.map(({ path, message }) => ({
      field: path.join(".") || "body",
      description: message.replace(/^Invalid input: /, ""),
    })),
  );
}

/** The form body of a page. */
export function formOf({ body }: FastifyRequest): URLSearchParams {
  if (body instanceof URLSearchParams) return body;
  throw invalidField("body", "must be a form (application/x-www-form-urlencoded)");
}
