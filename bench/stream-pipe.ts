// The least that could stand in the place of ForwardStream: Node's own HTTPS server and client with a pipe between them, both
// ways. A process of its own for bench/stream.ts; tells where it listens.
import { readFileSync } from "node:fs";
import { Agent, createServer, request as requestHttps } from "node:https";
import type { AddressInfo } from "node:net";

/** What it is told. */
export interface PipeOptions {
  readonly upstream: string;
  readonly certificateFile: string;
  readonly keyFile: string;
  readonly upstreamCaFile: string;
}

const options = JSON.parse(process.argv[2] ?? "{}") as PipeOptions;
const agent = new Agent({ keepAlive: true, ca: readFileSync(options.upstreamCaFile) });
const server = createServer(
  { cert: readFileSync(options.certificateFile), key: readFileSync(options.keyFile), minVersion: "TLSv1.3" },
  (incoming, response) => {
    const { method = "GET", url = "/" } = incoming;
    const outgoing = requestHttps(new URL(url, options.upstream), {
      method,
      agent,
      headers: { authorization: "Bearer access-token" },
    });
    outgoing.on("response", (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    });
    outgoing.on("error", () => response.destroy());
    response.on("close", () => outgoing.destroy());
    incoming.pipe(outgoing);
  },
);
server.listen(0, "127.0.0.1", () => process.send?.({ port: (server.address() as AddressInfo).port }));
process.on("message", () => process.send?.(process.cpuUsage()));
process.on("disconnect", () => process.exit());
