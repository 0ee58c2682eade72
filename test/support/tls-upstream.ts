// A TLS server that speaks raw bytes, so that a test decides every byte of an answer, the invalid ones too.
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer, type TLSSocket } from "node:tls";
import { ensureCertificates } from "../../dev/certificates.ts";

/** The name that the certificate is good for. */
export const upstreamHost = "api.acme.com";

/** A running server and what has reached it. */
export interface TlsUpstream {
  readonly port: number;
  /** The certificate authority to trust. */
  readonly ca: string;
  /** Every request head and body as text. */
  readonly requests: string[];
  readonly sockets: Set<TLSSocket>;
  /** Connections accepted, also those that have gone. */
  readonly connections: () => number;
  /** What answers from now on. */
  answerWith(answer: Answer): void;
  close(): Promise<void>;
}

/** Raw bytes to write, or a function over the socket. */
export type Answer = string | ((socket: TLSSocket) => void);

/** Starts a server on loopback, or on another address of this machine. */
export async function startTlsUpstream(address = "127.0.0.1"): Promise<TlsUpstream> {
  const directory = await mkdtemp(join(tmpdir(), "deputy-upstream-"));
  const files = await ensureCertificates({
    directory,
    trustDomain: "deputy.test",
    services: ["upstream"],
    // A process of its own resolves by the system, which knows this name alone.
    hosts: [upstreamHost, "localhost"],
  });
  const own = files.services.upstream;
  if (own === undefined) {
    throw new Error("no certificate was made");
  }
  const requests: string[] = [];
  const sockets = new Set<TLSSocket>();
  let accepted = 0;
  let answer: Answer = "";
  const server = createServer({ cert: readFileSync(own.certificateFile), key: readFileSync(own.keyFile) }, (socket) => {
    accepted += 1;
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    // Requests of these tests fit in one TLS record.
    socket.on("data", (chunk) => {
      requests.push(chunk.toString("latin1"));
      if (typeof answer === "string") {
        socket.write(answer, "latin1");
      } else {
        answer(socket);
      }
    });
  });
  server.on("tlsClientError", () => undefined);
  await new Promise<void>((resolve) => server.listen(0, address, resolve));
  return {
    port: (server.address() as AddressInfo).port,
    ca: readFileSync(files.caFile, "utf8"),
    requests,
    sockets,
    connections: () => accepted,
    answerWith: (next) => {
      answer = next;
    },
    close: async () => {
      for (const socket of sockets) {
        socket.destroy();
      }
      await new Promise((resolve) => server.close(resolve));
      await rm(directory, { recursive: true });
    },
  };
}

/** Answers with so many bytes, as fast as they are taken, and counts those that were written. */
export function pour(socket: TLSSocket, totalBytes: number): { bytes: number } {
  const poured = { bytes: 0 };
  const block = Buffer.alloc(65_536, 1);
  const more = () => {
    while (poured.bytes < totalBytes && !socket.destroyed) {
      poured.bytes += block.length;
      if (!socket.write(block)) return;
    }
    socket.off("drain", more);
  };
  socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${totalBytes}\r\n\r\n`);
  socket.on("drain", more);
  more();
  return poured;
}

/** Takes a chunked body of any size without keeping it, and answers at its end. */
export function drink(upstream: TlsUpstream): Answer {
  return (socket) => {
    const last = upstream.requests.at(-1) ?? "";
    upstream.requests.length = 0;
    if (last.endsWith("0\r\n\r\n")) socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
  };
}
