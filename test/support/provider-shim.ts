// Stands in front of the sandbox provider and misbehaves on demand: refuses, answers something else, loses the answer, or
// holds a request until it is let go. Everything else goes through to the true provider.
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, request as requestHttps } from "node:https";
import type { AddressInfo } from "node:net";

/** What becomes of one request. */
export type Fault =
  /** This answer instead of the provider's, who does not hear of the request. */
  | { readonly status: number; readonly body: string; readonly headers?: Readonly<Record<string, string>> }
  /** The connection breaks before the provider hears of it, or after it has answered. */
  | "break"
  | "lose answer"
  | undefined;

/** Says what becomes of a request, by its path and all that came with it: URL, headers and body in one text. */
export type Judge = (path: string, asked: string) => Fault | Promise<Fault>;

/** Requests on their way to the provider. */
export interface HeldRequests {
  /** Settled when the first has come. */
  readonly arrived: Promise<void>;
  letGo(): void;
}

/** A running shim. */
export interface ProviderShim {
  readonly url: string;
  readonly address: string;
  /** Paths of the requests that came, in order. */
  readonly requests: string[];
  /** What the provider was asked for tokens, what it answered, and when, by the monotonic clock. */
  readonly tokenAnswers: { readonly asked: string; readonly body: string; readonly timeMs: number }[];
  /** Judges each request from now on; a promise holds it. */
  misbehave(judge: Judge): void;
  /** Holds what comes for a path from now on, until it is let go: then the provider answers. */
  hold(path: string): HeldRequests;
  /** Gives a refresh token that comes again within this time the answer that it got, as lenient providers do. */
  allowReuse(graceMs: number): void;
  stop(): Promise<void>;
}

/** Starts a shim on loopback in front of a provider with the same certificate. */
export async function startProviderShim(
  providerUrl: string,
  tls: { readonly key: string; readonly certificate: string; readonly ca: string },
): Promise<ProviderShim> {
  const requests: string[] = [];
  const tokenAnswers: { asked: string; body: string; timeMs: number }[] = [];
  const answers = new Map<string, { status: number; content: Buffer; timeMs: number }>();
  let graceMs = 0;
  let judge: Judge = () => undefined;

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? "").split("?")[0] ?? "";
    requests.push(path);
    const body = Buffer.concat(await request.toArray());
    const fault = await judge(path, [request.url, ...request.rawHeaders, body.toString()].join("\n"));
    if (fault === "break") {
      response.destroy();
      return;
    }
    if (typeof fault === "object") {
      response.writeHead(fault.status, { "content-type": "application/json", ...fault.headers }).end(fault.body);
      return;
    }
    const token = new URLSearchParams(body.toString()).get("refresh_token");
    const given = token === null ? undefined : answers.get(token);
    if (given !== undefined && performance.now() - given.timeMs < graceMs) {
      if (fault === "lose answer") response.destroy();
      else response.writeHead(given.status, { "content-type": "application/json" }).end(given.content);
      return;
    }
    const { host: _host, ...headers } = request.headers;
    const options = { method: request.method ?? "GET", headers, ca: tls.ca, agent: false as const };
    const forwarded = requestHttps(new URL(request.url ?? "/", providerUrl), options);
    forwarded.on("error", () => response.destroy());
    forwarded.end(body);
    const [answer] = (await once(forwarded, "response")) as [IncomingMessage];
    const content = Buffer.concat(await answer.toArray());
    if (path === "/token") {
      tokenAnswers.push({ asked: body.toString(), body: content.toString(), timeMs: performance.now() });
    }
    if (token !== null) {
      answers.set(token, { status: answer.statusCode ?? 502, content, timeMs: performance.now() });
    }
    if (fault === "lose answer") response.destroy();
    else response.writeHead(answer.statusCode ?? 502, answer.headers).end(content);
  }

  const server = createServer({ key: tls.key, cert: tls.certificate }, (request, response) => {
    handle(request, response).catch(() => response.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = `localhost:${(server.address() as AddressInfo).port}`;
  return {
    url: `https://${address}`,
    address,
    requests,
    tokenAnswers,
    misbehave: (next) => {
      judge = next;
    },
    hold(path) {
      const [arrived, gate] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
      judge = async (asked) => {
        if (asked !== path) return undefined;
        arrived.resolve();
        await gate.promise;
        return undefined;
      };
      return { arrived: arrived.promise, letGo: gate.resolve };
    },
    allowReuse: (ms) => {
      graceMs = ms;
    },
    async stop() {
      const closed = once(server, "close");
      server.close();
      // Again and again: a connection that has not finished its handshake is not among them yet.
      const timer = setInterval(() => server.closeAllConnections(), 100);
      server.closeAllConnections();
      await closed;
      clearInterval(timer);
    },
  };
}
