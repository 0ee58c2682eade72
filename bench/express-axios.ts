// What a proxy made of the usual parts costs: express in, axios out, one header put in. The two are no packages of this
// project; bench/proxy.ts installs them into a directory of its own and names it here.
import { readFileSync } from "node:fs";
import { Agent } from "node:https";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { join } from "node:path";

const [packages = "", directory = "", upstreamPort = ""] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const express = require("express");
const axios = require("axios");

const httpsAgent = new Agent({ keepAlive: true, maxSockets: 256, ca: readFileSync(join(directory, "ca.pem")) });
const app = express();
app.use(
  async (
    request: { url: string },
    response: { status(code: number): { set(h: object): { send(b: Buffer): void } } },
  ) => {
    const answer = await axios.get(`https://127.0.0.1:${upstreamPort}${request.url}`, {
      httpsAgent,
      headers: { authorization: "Bearer access-token" },
      responseType: "arraybuffer",
      validateStatus: () => true,
    });
    response.status(answer.status).set({ "content-type": answer.headers["content-type"] }).send(answer.data);
  },
);
const server = app.listen(0, "127.0.0.1", () => {
  process.send?.({ port: (server.address() as AddressInfo).port });
});
process.on("message", () => process.send?.(process.cpuUsage()));
process.on("disconnect", () => process.exit());
