// A CONNECT proxy on loopback: relays to whatever address it is asked for and notes what that was.
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer as createHttpServer, type IncomingMessage } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import { type AddressInfo, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { ensureCertificates } from "../../dev/certificates.ts";

/** A running proxy. */
export interface ConnectProxy {
  readonly url: URL;
  /** The authority of an `https:` proxy's certificate. */
  readonly ca: string;
  /** Each target that was asked for. */
  readonly asked: string[];
  /** The bytes that the client sent through the tunnels. */
  readonly relayed: Buffer[];
  stop(): Promise<void>;
}

/** Starts a proxy that relays for those who give `user:password`, or for all. */
export async function startConnectProxy(protocol: "http:" | "https:", credentials?: string): Promise<ConnectProxy> {
  const directory = await mkdtemp(join(tmpdir(), "deputy-proxy-"));
  const files = await ensureCertificates({ directory, trustDomain: "deputy.test", services: ["relay"] });
  const own = files.services.relay;
  if (own === undefined) throw new Error("no certificate was made");
  const server =
    protocol === "https:"
      ? createHttpsServer({ cert: readFileSync(own.certificateFile), key: readFileSync(own.keyFile) })
      : createHttpServer();
  const [asked, relayed, sockets] = [[] as string[], [] as Buffer[], new Set<Duplex>()];
  server.on("connection", (socket: Duplex) => sockets.add(socket));
  server.on("connect", ({ url = "", headers }: IncomingMessage, client: Duplex) => {
    client.on("error", () => client.destroy());
    asked.push(url);
    const expected = credentials && `Basic ${Buffer.from(credentials).toString("base64")}`;
    if (expected !== headers["proxy-authorization"]) {
      client.end("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 4\r\n\r\nno\r\n");
      return;
    }
    const { hostname, port } = new URL(`http://${url}`);
    const target = connect(Number(port), hostname.replace(/^\[|\]$/g, ""));
    sockets.add(target);
    target.on("connect", () => client.write("HTTP/1.1 200 Connection established\r\nvia: 1.1 relay\r\n\r\n"));
    target.on("error", () => client.end("HTTP/1.1 502 Bad Gateway\r\n\r\n"));
    client.on("data", (chunk: Buffer) => relayed.push(chunk));
    client.pipe(target).pipe(client);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: new URL(`${protocol}//127.0.0.1:${(server.address() as AddressInfo).port}`),
    ca: readFileSync(files.caFile, "utf8"),
    asked,
    relayed,
    async stop() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
      await rm(directory, { recursive: true });
    },
  };
}
