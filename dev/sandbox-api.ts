// The small JSON API behind the sandbox provider: it demands a credential and echoes what reached it, with each
// credential replaced by a short hash, so that tests can tell two tokens apart without ever seeing one.
import { createHash } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { parse as parseQuery } from "node:querystring";

// More than the 8 MiB that a unary forward may carry, so that the limit met is never the sandbox's.
const maxEchoBytes = 32 * 1024 * 1024;

/** Reads the whole body. Throws a RangeError beyond `maxBytes`. */
export async function readBody(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw new RangeError(`body is larger than ${maxBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

export function answerJson(response: ServerResponse, status: number, body: unknown, headers: object = {}): void {
  const text = `${JSON.stringify(body)}\n`;
  response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store", ...headers });
  response.end(text);
}

/** Stands for a credential in an echo: the same for the same credential, and of no use to anybody. */
export function fingerprint(credential: string): string {
  return `sha256:${createHash("sha256").update(credential).digest("hex").slice(0, 12)}`;
}

function redactAuthorization(value: string): string {
  const [scheme = "", ...rest] = value.split(" ");
  return rest.length === 0 ? fingerprint(value) : `${scheme} ${fingerprint(rest.join(" "))}`;
}

function mapValues(value: string | string[] | undefined, change: (one: string) => string) {
  return Array.isArray(value) ? value.map(change) : value === undefined ? undefined : change(value);
}

async function echo(request: IncomingMessage, url: URL): Promise<object> {
  const body = await readBody(request, maxEchoBytes);
  const text = body.toString("utf8");
  const isText = Buffer.from(text, "utf8").equals(body);
  const { authorization, "x-api-key": apiKey, ...headers } = request.headers;
  const { api_key: queryKey, ...query } = parseQuery(url.search.slice(1));
  return {
    method: request.method,
    path: url.pathname,
    query: { ...query, ...(queryKey !== undefined && { api_key: mapValues(queryKey, fingerprint) }) },
    headers: {
      ...headers,
      ...(authorization !== undefined && { authorization: redactAuthorization(authorization) }),
      ...(apiKey !== undefined && { "x-api-key": mapValues(apiKey, fingerprint) }),
    },
    body: isText ? text : body.toString("base64"),
    body_encoding: isText ? "utf8" : "base64",
  };
}

function isKey(value: unknown): boolean {
  return typeof value === "string" && /^sandbox-key-[\x21-\x7e]+$/.test(value) && value.length >= 16;
}

function refuse(response: ServerResponse, challenge: string, message: string): void {
  answerJson(response, 401, { error: message }, { "www-authenticate": challenge });
}

/** Answers `/api/*` (bearer token), `/keys/header/*` and `/keys/query/*` (key). `findUser` gives what `/api/me` shows. */
export async function handleApi(
  request: IncomingMessage,
  response: ServerResponse,
  url: URL,
  findUser: (accessToken: string) => Promise<object | undefined>,
): Promise<void> {
  const [area, part] = url.pathname.split("/").slice(1);
  if (area === "api") {
    const token = /^Bearer ([\w.~+/-]+=*)$/i.exec(request.headers.authorization ?? "")?.[1];
    if (token === undefined) return refuse(response, 'Bearer realm="sandbox"', "a bearer token is required");
    const user = await findUser(token);
    if (user === undefined) {
      return refuse(response, 'Bearer realm="sandbox", error="invalid_token"', "the token is expired or revoked");
    }
    if (url.pathname === "/api/me") return answerJson(response, 200, user);
    if (part === "echo") return answerJson(response, 200, await echo(request, url));
  }
  if (area === "keys" && (part === "header" || part === "query")) {
    const key = part === "header" ? request.headers["x-api-key"] : parseQuery(url.search.slice(1)).api_key;
    if (!isKey(key))
      return refuse(response, 'ApiKey realm="sandbox"', "a key that begins with sandbox-key- is required");
    return answerJson(response, 200, await echo(request, url));
  }
  answerJson(response, 404, { error: "no such path" });
}
