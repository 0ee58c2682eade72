// The least that could stand in the place of ForwardStream: Node's own HTTP server and client with a pipe between them, both
// ways. A process of its own for bench/stream-speed.ts; tells where it listens.
import { createServer } from "node:http";
import { Agent, request as requestHttps } from "node:https";
import type { AddressInfo } from "node:net";
import { readBenchTls, upstreamHost } from "./proxy-tls.ts";

const [directory = "", upstreamPort = ""] = process.argv.slice(2);
const agent = new Agent({ keepAlive: true, ca: readBenchTls(directory, "proxy").ca });
const server = createServer((incoming, response) => {
  const { method = "GET", url = "/" } = incoming;
  const outgoing = requestHttps({
    ...{ host: "127.0.0.1", port: Number(upstreamPort), servername: upstreamHost, path: url, method, agent },
    headers: { authorization: "Bearer access-token" },
  });
  outgoing.on("response", (answer) => {
    response.writeHead(answer.statusCode ?? 502, answer.headers);
    answer.pipe(response);
  });
  outgoing.on("error", () => response.destroy());
  response.on("close", () => outgoing.destroy());
  incoming.pipe(outgoing);
});
server.listen(0, "127.0.0.1", () => process.send?.({ port: (server.address() as AddressInfo).port }));
process.on("message", () => process.send?.(process.cpuUsage()));
process.on("disconnect", () => process.exit());
