// Token endpoints of the refresh loop's benchmark, in a process of their own: one host for each port, TLS, an answer after so
// many milliseconds or never, and counts of what came. They rotate strictly: a refresh token that comes twice is counted.
import { randomUUID } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import { setTimeout as sleep } from "node:timers/promises";
import { readConfig } from "#libs/config.ts";

/** How one of them answers. */
export interface TokenHost {
  readonly port: number;
  readonly latencyMs: number;
  /** Lifetime of the tokens that it gives. */
  readonly expiresInSeconds: number;
  /** Whether it takes requests and never answers. */
  readonly hangs?: boolean;
}

/** What came to one of them. */
export interface EndpointStats {
  readonly requests: number;
  readonly mostAtOnce: number;
  readonly tokensSentTwice: number;
}

function tokenHost({ latencyMs, expiresInSeconds, hangs = false }: TokenHost) {
  const stats = { requests: 0, mostAtOnce: 0, tokensSentTwice: 0 };
  const spent = new Set<string>();
  let atOnce = 0;

  async function grant(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = new URLSearchParams(Buffer.concat(await request.toArray()).toString());
    const token = body.get("refresh_token") ?? "";
    stats.requests += 1;
    if (spent.has(token)) stats.tokensSentTwice += 1;
    else spent.add(token);
    if (hangs) return;
    await sleep(latencyMs);
    const granted = { access_token: randomUUID(), refresh_token: randomUUID(), expires_in: expiresInSeconds };
    answer(response, { ...granted, token_type: "bearer" });
  }

  return (request: IncomingMessage, response: ServerResponse) => {
    if (request.url === "/stats") {
      answer(response, stats);
      return;
    }
    atOnce += 1;
    stats.mostAtOnce = Math.max(stats.mostAtOnce, atOnce);
    response.once("close", () => {
      atOnce -= 1;
    });
    grant(request, response).catch(() => response.destroy());
  };
}

function answer(response: ServerResponse, body: object): void {
  response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(body));
}

if (import.meta.main) {
  const config = readConfig({
    DEPUTY_BENCH_HOSTS: { kind: "text", help: "The hosts, JSON." },
    DEPUTY_BENCH_TLS_KEY_FILE: { kind: "secret", help: "Private key, PEM." },
    DEPUTY_BENCH_TLS_CERTIFICATE_FILE: { kind: "file", help: "Certificate, PEM." },
  });
  const tls = { key: config.DEPUTY_BENCH_TLS_KEY_FILE.reveal(), cert: config.DEPUTY_BENCH_TLS_CERTIFICATE_FILE };
  for (const host of JSON.parse(config.DEPUTY_BENCH_HOSTS) as readonly TokenHost[]) {
    createServer(tls, tokenHost(host)).listen(host.port, "127.0.0.1");
  }
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => process.exit());
}
