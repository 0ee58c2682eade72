// A real third party on loopback for development and tests: an OAuth 2.0 authorization server (oidc-provider) and a small
// JSON API that demands its tokens. `npm start` runs this file as a process of its own; tests call startSandboxProvider.
//
//   /.well-known/openid-configuration, /auth, /token, /token/revocation, /me, /jwks    the authorization server
//   /interaction/<id>        the page on which a person signs in under any name and allows or denies
//   /api/me, /api/echo/*     demand a bearer token; the echo shows the request with the credential as a short hash
//   /keys/header/*, /keys/query/*   the same for `x-api-key: sandbox-key-...` and `?api_key=sandbox-key-...`
//   /stats                   counts of token requests, revocations, and grants ended by refresh token reuse
//   POST /admin/expire-access-tokens               makes every access token of now invalid at the API
//   POST /admin/access-token-seconds {"seconds":n} changes the lifetime of access tokens issued from now on
//
// A script plays the person with three requests, keeping cookies: GET the authorization URL (303 to /interaction/<id>),
// POST there `name=...&decision=allow` or `decision=deny` as a form (303 to /auth/<id>), GET that (303 to the redirect URI
// with `code`, `state`, `iss`, or with `error=access_denied`). answerConsent in sandbox-consent.ts does just that.
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { readConfig } from "#libs/config.ts";
import { answerJson, handleApi, readBody } from "./sandbox-api.ts";
import { createSandboxOauth, type SandboxOauth, type SandboxStats } from "./sandbox-oauth.ts";
import { openSandboxStore } from "./sandbox-store.ts";

const stopGraceMs = 2_000;

export interface SandboxProviderOptions {
  /** 0 takes any free port. It always listens on 127.0.0.1. */
  readonly port: number;
  /** The host in the provider's URLs: 127.0.0.1, or a name that leads there. */
  readonly hostname?: string;
  readonly clientId: string;
  readonly clientSecret: string;
  readonly redirectUris: readonly string[];
  readonly accessTokenSeconds: number;
  /** With a key and a certificate it speaks https, else http. */
  readonly tls?: { readonly key: string; readonly cert: string };
  /** Keeps grants, tokens and keys over a restart; without it they live in memory. */
  readonly storeFile?: string;
}

export interface SandboxProvider {
  /** The issuer, without a slash at its end. */
  readonly url: string;
  readonly apiUrl: string;
  readonly stats: Readonly<SandboxStats>;
  stop(): Promise<void>;
}

function checkSeconds(name: string, seconds: unknown): number {
  if (typeof seconds === "number" && Number.isInteger(seconds) && seconds >= 1 && seconds <= 31_536_000) return seconds;
  throw new RangeError(`${name} is not a whole number of seconds from 1 to 31536000`);
}

/** Starts the sandbox provider and resolves when it answers. */
export async function startSandboxProvider(options: SandboxProviderOptions): Promise<SandboxProvider> {
  let accessTokenSeconds = checkSeconds("accessTokenSeconds", options.accessTokenSeconds);
  if (options.redirectUris.length === 0) throw new RangeError("redirectUris is empty");
  const { hostname = "127.0.0.1", tls } = options;
  const stats: SandboxStats = { tokenRequests: {}, revocationRequests: 0, familiesRevokedByReuse: 0 };
  const store = await openSandboxStore(options.storeFile);

  async function handleAdmin(request: IncomingMessage, response: ServerResponse, path: string): Promise<void> {
    if (request.method !== "POST") return answerJson(response, 405, { error: "use POST" }, { allow: "POST" });
    if (path === "/admin/expire-access-tokens") {
      return answerJson(response, 200, { expired: await store.destroyAll("AccessToken") });
    }
    if (path !== "/admin/access-token-seconds") return answerJson(response, 404, { error: "no such path" });
    try {
      const { seconds } = JSON.parse((await readBody(request, 1024)).toString());
      accessTokenSeconds = checkSeconds("seconds", seconds);
      answerJson(response, 200, { seconds: accessTokenSeconds });
    } catch (error) {
      answerJson(response, 400, { error: error instanceof RangeError ? error.message : "the body is not JSON" });
    }
  }

  async function route(oauth: SandboxOauth, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const target = new URL(request.url ?? "/", "http://sandbox");
    const path = target.pathname;
    if (/^\/(api|keys)\//.test(path)) return handleApi(request, response, target, oauth.findUser);
    if (path === "/stats") return answerJson(response, 200, stats);
    if (path.startsWith("/admin/")) return handleAdmin(request, response, path);
    if (path.startsWith("/interaction/")) return oauth.handleInteraction(request, response);
    return oauth.handleOauth(request, response);
  }

  const server = tls === undefined ? createServer() : createTlsServer({ ...tls, minVersion: "TLSv1.2" });
  server.listen(options.port, "127.0.0.1");
  await once(server, "listening");
  // Known only now, and needed by the provider: with port 0 the system chose.
  const url = `${tls === undefined ? "http" : "https"}://${hostname}:${(server.address() as AddressInfo).port}`;

  async function stop(): Promise<void> {
    if (!server.listening) return;
    const closed = once(server, "close");
    server.close();
    const timer = setTimeout(() => server.closeAllConnections(), stopGraceMs);
    await closed;
    clearTimeout(timer);
    await store.flush();
  }

  try {
    const { clientId, clientSecret, redirectUris } = options;
    const setting = { issuer: url, clientId, clientSecret, redirectUris, store, stats };
    const oauth = createSandboxOauth({ ...setting, accessTokenSeconds: () => accessTokenSeconds });
    server.on("request", (request, response) => {
      route(oauth, request, response).catch((error: Error) => {
        const status = error instanceof RangeError ? 413 : 500;
        if (status === 500) console.error("sandbox provider:", error);
        if (response.headersSent) response.destroy();
        else
          answerJson(response, status, { error: status === 413 ? error.message : "internal" }, { connection: "close" });
      });
    });
  } catch (error) {
    await stop();
    throw error;
  }
  return { url, apiUrl: `${url}/api`, stats, stop };
}

if (import.meta.main) {
  const config = readConfig({
    DEPUTY_SANDBOX_PORT: { kind: "integer", default: "7480", help: "Port on 127.0.0.1." },
    DEPUTY_SANDBOX_HOSTNAME: { kind: "text", default: "127.0.0.1", help: "The host in the provider's URLs." },
    DEPUTY_SANDBOX_CLIENT_ID: { kind: "text", help: "Identifier of the one OAuth client." },
    DEPUTY_SANDBOX_CLIENT_SECRET_FILE: { kind: "secret", help: "File with that client's secret." },
    DEPUTY_SANDBOX_REDIRECT_URIS: { kind: "list", help: "Redirect URIs of that client, separated by commas." },
    DEPUTY_SANDBOX_ACCESS_TOKEN_SECONDS: { kind: "integer", default: "3600", help: "Lifetime of access tokens." },
    DEPUTY_SANDBOX_STATE_DIRECTORY: { kind: "path", help: "Where grants, tokens and keys are kept." },
    DEPUTY_SANDBOX_TLS_KEY_FILE: { kind: "secret", default: "", help: "Private key, PEM; with a certificate: https." },
    DEPUTY_SANDBOX_TLS_CERTIFICATE_FILE: { kind: "file", default: "", help: "Certificate, PEM." },
  });
  const key = config.DEPUTY_SANDBOX_TLS_KEY_FILE.reveal();
  const cert = config.DEPUTY_SANDBOX_TLS_CERTIFICATE_FILE;
  if ((key === "") !== (cert === "")) {
    throw new Error("DEPUTY_SANDBOX_TLS_KEY_FILE and DEPUTY_SANDBOX_TLS_CERTIFICATE_FILE go together");
  }
  const provider = await startSandboxProvider({
    port: config.DEPUTY_SANDBOX_PORT,
    hostname: config.DEPUTY_SANDBOX_HOSTNAME,
    clientId: config.DEPUTY_SANDBOX_CLIENT_ID,
    clientSecret: config.DEPUTY_SANDBOX_CLIENT_SECRET_FILE.reveal(),
    redirectUris: config.DEPUTY_SANDBOX_REDIRECT_URIS,
    accessTokenSeconds: config.DEPUTY_SANDBOX_ACCESS_TOKEN_SECONDS,
    storeFile: join(config.DEPUTY_SANDBOX_STATE_DIRECTORY, "sandbox-provider.json"),
    ...(key !== "" && { tls: { key, cert } }),
  });
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => provider.stop());
  console.log(`sandbox provider at ${provider.url}`);
}
