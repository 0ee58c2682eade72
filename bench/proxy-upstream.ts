// The API at the end of every measured way: raw TLS with ready-made answers, so that it costs as little as can be. `GET /<n>`
// gives n bytes. Started by bench/proxy.ts.
import { readFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { createServer, type TLSSocket } from "node:tls";

const [directory = ""] = process.argv.slice(2);
const read = (name: string) => readFileSync(join(directory, name));
const answers = new Map<string, Buffer>();

function answerOf(size: string): Buffer {
  const known = answers.get(size);
  if (known !== undefined) return known;
  const head = `HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: ${size}\r\n\r\n`;
  const made = Buffer.concat([Buffer.from(head), Buffer.alloc(Number(size), "x")]);
  answers.set(size, made);
  return made;
}

function serve(socket: TLSSocket): void {
  let rest = "";
  socket.on("error", () => socket.destroy());
  // Only GETs without a body come here: each ends with the first empty line.
  socket.on("data", (chunk) => {
    const parts = (rest + chunk.toString("latin1")).split("\r\n\r\n");
    rest = parts.pop() ?? "";
    for (const part of parts) socket.write(answerOf(/^GET (?:https:\/\/[^/]+)?\/(\d+)/.exec(part)?.[1] ?? "0"));
  });
}

const server = createServer({ cert: read("upstream.pem"), key: read("upstream-key.pem") }, serve);
server.listen(0, "127.0.0.1", () => process.send?.({ port: (server.address() as AddressInfo).port }));
process.on("disconnect", () => process.exit());
