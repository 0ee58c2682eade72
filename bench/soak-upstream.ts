// The upstream of the soak, over TLS: answers, breaks connections off, keeps silent, or refuses the tokens that it has seen so
// far, as it is told.
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import type { TlsIdentity } from "#libs/rpc.ts";

/** An upstream at work. */
export interface SoakUpstream {
  /** `localhost:port`. */
  readonly host: string;
  /** How it treats requests from now on. */
  behave(how: "well" | "reset" | "hang"): void;
  /** Refuses every token that it has seen, with 401, until it is told to forgive. */
  refuseTokens(refusing: boolean): void;
  stop(): void;
}

/** `/large` answers with so many bytes. */
export const largeBytes = 100 * 1024;

const small = Buffer.from('{"ok":true}');
const large = Buffer.alloc(largeBytes, "l");
const slowMs = 2_000;

/** Starts it on loopback. */
export async function startSoakUpstream(tls: TlsIdentity & { readonly key: string }): Promise<SoakUpstream> {
  let how: "well" | "reset" | "hang" = "well";
  let refused = new Set<string>();
  const seen = new Set<string>();
  let resets = 0;

  function answer(request: IncomingMessage, response: ServerResponse): void {
    const token = String(request.headers.authorization);
    seen.add(token);
    if (how === "hang") return void request.resume();
    // One before the answer, the next within it.
    if (how === "reset" && resets++ % 2 === 0) return void request.socket.destroy();
    if (how === "reset") {
      response.writeHead(200, { "content-length": largeBytes });
      response.write(small, () => request.socket.destroy());
      return;
    }
    if (refused.has(token)) {
      request.resume();
      return void response.writeHead(401, { "content-length": 0 }).end();
    }
    if (request.method === "POST") return void request.pipe(response.writeHead(200));
    if (request.url === "/large") return void response.end(large);
    if (request.url === "/slow") return void setTimeout(() => response.end(small), slowMs);
    response.end(small);
  }

  const server = createServer({ key: tls.key, cert: tls.certificate }, (request, response) => {
    // A proxy that leaves in the middle is part of the soak.
    for (const stream of [request, response]) stream.on("error", () => undefined);
    answer(request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    host: `localhost:${(server.address() as AddressInfo).port}`,
    behave: (next) => {
      how = next;
    },
    refuseTokens: (refusing) => {
      refused = new Set(refusing ? seen : []);
    },
    stop() {
      server.closeAllConnections();
      server.close();
    },
  };
}
