// Requests through an egress proxy of the operator, and past those that the environment names.
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type Egress, type EgressOptions, openEgress } from "#libs/egress.ts";
import { EgressError } from "#libs/egress-error.ts";
import { Secret } from "#libs/secret.ts";
import { type ConnectProxy, startConnectProxy } from "../support/connect-proxy.ts";
import { startTlsUpstream, type TlsUpstream, upstreamHost } from "../support/tls-upstream.ts";

let upstream: TlsUpstream;
let proxy: ConnectProxy;
const opened: Egress[] = [];

beforeAll(async () => {
  [upstream, proxy] = await Promise.all([startTlsUpstream(), startConnectProxy("http:")]);
});
afterAll(() => Promise.all([upstream.close(), proxy.stop()]));
beforeEach(() => {
  proxy.asked.length = proxy.relayed.length = upstream.requests.length = 0;
  upstream.answerWith("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
});
afterEach(() => Promise.all(opened.splice(0).map((egress) => egress.close())));

const request = {
  method: "GET",
  headers: [["authorization", "Bearer s3cret"]],
  totalTimeoutMs: 5000,
  maxBodyBytes: 1000,
} as const;

function send(options: EgressOptions = {}, url = `https://${upstreamHost}:${upstream.port}/x`) {
  const egress = openEgress({
    resolve: async () => ["127.0.0.1"],
    exemptTargets: [`${upstreamHost}:${upstream.port}`],
    extraCa: upstream.ca,
    proxy: { url: proxy.url },
    ...options,
  });
  opened.push(egress);
  return egress.send({ ...request, url: new URL(url) });
}

async function failure(sending: Promise<unknown>): Promise<EgressError> {
  const error = await sending.catch((reason: unknown) => reason);
  if (!(error instanceof EgressError)) throw new Error(`not an EgressError: ${String(error)}`);
  return error;
}

describe("through an egress proxy", () => {
  it("a request asks for the judged address, and TLS ends at the upstream", async () => {
    expect((await send()).status).toBe(200);
    expect(proxy.asked).toEqual([`127.0.0.1:${upstream.port}`]);
    expect(upstream.requests[0]).toContain(`host: ${upstreamHost}:${upstream.port}\r\n`);
    const seen = Buffer.concat(proxy.relayed).toString("latin1");
    expect(seen.length).toBeGreaterThan(500);
    expect(seen).not.toContain("s3cret");
  });

  it.each([["10.0.0.5"], ["169.254.169.254"], ["93.184.215.14", "10.0.0.5"]])(
    "nothing is asked for when the name leads to %s",
    async (...addresses) => {
      const error = await failure(send({ resolve: async () => addresses }));
      expect([error.kind, error.denial?.rule, error.sent]).toEqual(["denied", "ADDRESS_NOT_ALLOWED", false]);
      expect(proxy.asked).toEqual([]);
    },
  );

  it("nothing is asked for when the URL itself names a private address or loopback", async () => {
    for (const host of ["10.0.0.5", "127.0.0.1", "[::1]", "[::ffff:10.0.0.5]"]) {
      expect((await failure(send({}, `https://${host}:${upstream.port}/`))).denial?.rule).toBe("ADDRESS_NOT_ALLOWED");
    }
    expect(proxy.asked).toEqual([]);
  });

  it("the name is resolved once, whatever it would say the second time", async () => {
    const answers = [["127.0.0.1"], ["10.0.0.5"]];
    expect((await send({ resolve: async () => answers.shift() ?? [] })).status).toBe(200);
    expect([answers.length, proxy.asked]).toEqual([1, [`127.0.0.1:${upstream.port}`]]);
  });

  it("an upstream with another name in its certificate is refused, and gets no request", async () => {
    const url = `https://other.acme.com:${upstream.port}/`;
    const error = await failure(send({ exemptTargets: [`other.acme.com:${upstream.port}`] }, url));
    expect([error.kind, error.sent, upstream.requests]).toEqual(["connect", false, []]);
  });

  it("the next address is tried when the proxy does not reach the first", async () => {
    expect((await send({ resolve: async () => ["127.0.0.2", "::1", "127.0.0.1"] })).status).toBe(200);
    expect(proxy.asked).toEqual(["127.0.0.2", "[::1]", "127.0.0.1"].map((host) => `${host}:${upstream.port}`));
  });

  it("credentials are given to the proxy alone; without them it refuses", async () => {
    const guarded = await startConnectProxy("http:", "deputy:pass:word");
    try {
      const credentials = new Secret("deputy:pass:word");
      expect((await send({ proxy: { url: guarded.url, credentials } })).status).toBe(200);
      expect(upstream.requests.join()).not.toMatch(/proxy-authorization/i);
      for (const wrong of [undefined, new Secret("deputy:w0rd")]) {
        const error = await failure(send({ proxy: { url: guarded.url, ...(wrong && { credentials: wrong }) } }));
        expect([error.kind, error.sent]).toEqual(["connect", false]);
        expect(error.message).toBe("The egress proxy opened no connection (407).");
      }
    } finally {
      await guarded.stop();
    }
  });

  it("its own TLS is verified", async () => {
    const secure = await startConnectProxy("https:");
    try {
      expect((await send({ proxy: { url: secure.url }, extraCa: `${upstream.ca}\n${secure.ca}` })).status).toBe(200);
      const error = await failure(send({ proxy: { url: secure.url } }));
      expect([error.kind, error.message]).toMatchObject(["connect", expect.stringMatching(/^The egress proxy cannot/)]);
      expect(secure.asked).toHaveLength(1);
    } finally {
      await secure.stop();
    }
  });
});

describe("an egress proxy", () => {
  /** Sends through a server that answers CONNECT with these bytes. */
  async function sendThrough(answer: (socket: Socket) => void, options: EgressOptions = {}): Promise<EgressError> {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on("error", () => socket.destroy());
      socket.once("data", () => answer(socket));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const url = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    try {
      const error = await failure(send({ proxy: { url }, ...options }));
      await expect.poll(() => [...sockets].every((socket) => socket.destroyed)).toBe(true);
      return error;
    } finally {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  it.each([
    ["is no proxy", "SSH-2.0-OpenSSH\r\n\r\n", "opened no connection (0)"],
    ["refuses", "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "opened no connection (403)"],
    ["says more than it was asked", "HTTP/1.1 200 OK\r\n\r\n\x16\x03", "gave no valid answer"],
    ["has no end of headers", `HTTP/1.1 200 OK\r\nx: ${"y".repeat(9000)}`, "gave no valid answer"],
  ])("that %s is told as such, and its connection is closed", async (_what, bytes, message) => {
    const error = await sendThrough((socket) => socket.write(bytes, "latin1"));
    expect([error.kind, error.sent, error.message]).toEqual(["connect", false, `The egress proxy ${message}.`]);
  });

  it("that hangs up or is not there is told as not reached", async () => {
    expect((await sendThrough((socket) => socket.destroy())).message).toMatch(/^The egress proxy cannot be reached/);
    const gone = await failure(send({ proxy: { url: new URL("http://127.0.0.1:1") } }));
    expect([gone.kind, gone.message]).toEqual(["connect", "The egress proxy cannot be reached (ECONNREFUSED)."]);
  });

  it("that stays silent, or a resolver that does, ends at the time limit for connections", async () => {
    const silent = await sendThrough(() => undefined, { connectTimeoutMs: 150 });
    expect([silent.kind, silent.sent]).toEqual(["timeout", false]);
    const unresolved = await failure(send({ resolve: () => new Promise(() => {}), connectTimeoutMs: 150 }));
    expect([unresolved.kind, proxy.asked]).toEqual(["timeout", []]);
  });

  it("that agrees and then stays silent ends there too", async () => {
    const error = await sendThrough((socket) => socket.write("HTTP/1.1 200 OK\r\n\r\n"), { connectTimeoutMs: 150 });
    expect([error.kind, error.sent]).toEqual(["timeout", false]);
  });
});

it("proxies that the environment names are ignored, from the start of the process on", async () => {
  const directory = await mkdtemp(join(tmpdir(), "deputy-environment-"));
  try {
    await writeFile(join(directory, "ca.pem"), upstream.ca);
    const script = `
      import { readFileSync } from "node:fs";
      import { openEgress } from "#libs/egress.ts";
      const egress = openEgress({
        resolve: async () => ["127.0.0.1"],
        exemptTargets: ["${upstreamHost}:${upstream.port}"],
        extraCa: readFileSync(process.argv[1], "utf8"),
      });
      const url = new URL("https://${upstreamHost}:${upstream.port}/");
      const answer = await egress.send({ url, method: "GET", headers: [], totalTimeoutMs: 5000, maxBodyBytes: 100 });
      console.log(answer.status);
      await egress.close();`;
    const names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    const env = {
      ...Object.fromEntries(names.map((name) => [name, proxy.url.origin])),
      NODE_USE_ENV_PROXY: "1",
      NO_PROXY: "",
    };
    const { stdout } = await promisify(execFile)(
      process.execPath,
      ["--input-type=module-typescript", "-e", script, join(directory, "ca.pem")],
      { env },
    );
    expect([stdout.trim(), proxy.asked, upstream.requests.length]).toEqual(["200", [], 1]);
  } finally {
    await rm(directory, { recursive: true });
  }
});
