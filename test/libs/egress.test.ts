// The sender against a raw TLS server on loopback: what it dials, what it passes on, and how each failure is told.
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type Egress, type EgressOptions, type EgressRequest, openEgress } from "#libs/egress.ts";
import { EgressError } from "#libs/egress-error.ts";
import { startTlsUpstream, type TlsUpstream, upstreamHost } from "../support/tls-upstream.ts";

let upstream: TlsUpstream;
const opened: Egress[] = [];

beforeAll(async () => {
  upstream = await startTlsUpstream();
});
afterAll(() => upstream.close());
beforeEach(() => {
  upstream.requests.length = 0;
  upstream.answerWith("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
});
afterEach(async () => {
  await Promise.all(opened.splice(0).map((egress) => egress.close()));
});

/** An egress for which the upstream's name is on loopback and exempt, unless the options say otherwise. */
function open(options: EgressOptions = {}): Egress {
  const egress = openEgress({
    resolve: async () => ["127.0.0.1"],
    exemptTargets: [`${upstreamHost}:${upstream.port}`],
    extraCa: upstream.ca,
    ...options,
  });
  opened.push(egress);
  return egress;
}

function get(change: Partial<EgressRequest> = {}): EgressRequest {
  const url = new URL(`https://${upstreamHost}:${upstream.port}/v1/things?a=1`);
  return { url, method: "GET", headers: [], totalTimeoutMs: 5000, maxBodyBytes: 1000, ...change };
}

async function failure(sending: Promise<unknown>): Promise<EgressError> {
  const error = await sending.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof EgressError)) {
    throw new Error(`not an EgressError: ${String(error)}`);
  }
  return error;
}

describe("a request", () => {
  it("reaches the judged address under the name of the URL, with the body as it is", async () => {
    const answer = await open().send(
      get({ method: "POST", headers: [["x-custom", "world!"]], body: Buffer.from("{}") }),
    );
    expect([answer.status, answer.body.toString()]).toEqual([200, "ok"]);
    const [request = ""] = upstream.requests;
    expect(request.split("\r\n")[0]).toBe("POST /v1/things?a=1 HTTP/1.1");
    expect(request).toContain(`host: ${upstreamHost}:${upstream.port}\r\n`);
    expect(request).toContain("x-custom: world!\r\n");
    expect(request).toContain("accept-encoding: identity\r\n");
    expect(request.endsWith("\r\n\r\n{}")).toBe(true);
  });

  it("shares a connection with the one before, and not past the connection's lifetime", async () => {
    const egress = open({ connectionLifetimeMs: 300 });
    const before = upstream.connections();
    await egress.send(get());
    await sleep(50);
    await egress.send(get());
    expect(upstream.connections() - before).toBe(1);
    await sleep(400);
    await egress.send(get());
    expect(upstream.connections() - before).toBe(2);
  });

  it("lets what is under way end though its client's time is over, and breaks it off at the end", async () => {
    const egress = open({ connectionLifetimeMs: 100 });
    const gate = Promise.withResolvers<void>();
    upstream.answerWith(async (socket) => {
      await gate.promise;
      socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    const slow = egress.send(get({ totalTimeoutMs: 5_000 }));
    await sleep(200);
    const second = egress.send(get());
    gate.resolve();
    expect([(await slow).status, (await second).status]).toEqual([200, 200]);
    upstream.answerWith(() => undefined);
    const failures = [failure(egress.send(get({ totalTimeoutMs: 5_000 })))];
    await sleep(200);
    failures.push(failure(egress.send(get())));
    await sleep(50);
    await egress.close();
    expect((await Promise.all(failures)).map(({ kind }) => kind)).toEqual(["aborted", "aborted"]);
    expect((await failure(egress.send(get()))).kind).toBe("aborted");
  });

  it("ignores proxies that the environment names", async () => {
    process.env.HTTPS_PROXY = process.env.https_proxy = "http://127.0.0.1:1";
    try {
      expect((await open().send(get())).status).toBe(200);
    } finally {
      delete process.env.HTTPS_PROXY;
      delete process.env.https_proxy;
    }
  });
});

describe("a connection", () => {
  it("is refused on loopback when host and port are not exempt, and no byte leaves", async () => {
    const before = upstream.connections();
    for (const exemptTargets of [[], [`${upstreamHost}:1`], [`other.acme.com:${upstream.port}`]]) {
      const error = await failure(open({ exemptTargets }).send(get()));
      expect([error.kind, error.denial?.rule, error.sent]).toEqual(["denied", "ADDRESS_NOT_ALLOWED", false]);
    }
    expect(upstream.connections()).toBe(before);
  });

  it("is refused to an address literal, which never meets a lookup", async () => {
    const url = new URL(`https://127.0.0.1:${upstream.port}/`);
    const before = upstream.connections();
    const error = await failure(open().send(get({ url })));
    expect([error.denial?.rule, upstream.connections() - before]).toEqual(["ADDRESS_NOT_ALLOWED", 0]);
    expect((await open({ exemptTargets: [url.host] }).send(get({ url }))).status).toBe(200);
  });

  it("is refused when any answer is bad, whatever its place", async () => {
    for (const addresses of [
      ["93.184.215.14", "10.0.0.5"],
      ["10.0.0.5", "127.0.0.1"],
    ]) {
      const error = await failure(open({ resolve: async () => addresses }).send(get()));
      expect(error.denial?.rule).toBe("ADDRESS_NOT_ALLOWED");
    }
  });

  it("asks the resolver once, so a rebinding name cannot answer a second time", async () => {
    let asked = 0;
    const resolve = async () => [["127.0.0.1"], ["169.254.169.254"]][asked++] ?? [];
    expect((await open({ resolve }).send(get())).status).toBe(200);
    expect(asked).toBe(1);
    asked = 1;
    expect((await failure(open({ resolve }).send(get()))).kind).toBe("denied");
    expect(asked).toBe(2);
  });

  it("is refused when the certificate has no trusted issuer or another name, even if the environment says otherwise", async () => {
    const url = new URL(`https://other.acme.com:${upstream.port}/`);
    process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
    try {
      const untrusted = openEgress({
        resolve: async () => ["127.0.0.1"],
        exemptTargets: [`${upstreamHost}:${upstream.port}`],
      });
      opened.push(untrusted);
      const wrongName = open({ exemptTargets: [url.host] });
      for (const sending of [untrusted.send(get()), wrongName.send(get({ url }))]) {
        const error = await failure(sending);
        expect([error.kind, error.sent]).toEqual(["connect", false]);
      }
    } finally {
      delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    }
    expect(upstream.requests).toEqual([]);
  });

  it("is never made in plaintext", async () => {
    const error = await failure(open().send(get({ url: new URL(`http://${upstreamHost}:${upstream.port}/`) })));
    expect([error.denial?.rule, error.sent]).toEqual(["PLAINTEXT_REFUSED", false]);
  });

  it("that nobody accepts or no name leads to is told as not sent", async () => {
    const url = new URL(`https://${upstreamHost}:1/`);
    const refused = await failure(open({ exemptTargets: [url.host] }).send(get({ url })));
    expect([refused.kind, refused.sent]).toEqual(["connect", false]);
    const resolve = () => Promise.reject(Object.assign(new Error("no such name"), { code: "ENOTFOUND" }));
    const unknown = await failure(open({ resolve }).send(get()));
    expect([unknown.kind, unknown.sent, unknown.message]).toEqual([
      "connect",
      false,
      "No connection to the upstream (ENOTFOUND).",
    ]);
  });

  it("that the resolver holds up ends at the connection's own time limit", async () => {
    const error = await failure(open({ resolve: () => new Promise(() => {}), connectTimeoutMs: 100 }).send(get()));
    expect([error.kind, error.sent]).toEqual(["timeout", false]);
  });
});

describe("an answer", () => {
  it("that redirects is data", async () => {
    upstream.answerWith(
      `HTTP/1.1 302 Found\r\nlocation: https://${upstreamHost}:${upstream.port}/next\r\ncontent-length: 0\r\n\r\n`,
    );
    const answer = await open().send(get());
    expect(answer.status).toBe(302);
    expect(answer.headers).toContainEqual(["location", `https://${upstreamHost}:${upstream.port}/next`]);
    expect(upstream.requests).toHaveLength(1);
  });

  it("loses cookies and hop-by-hop headers, also those that Connection names", async () => {
    upstream.answerWith(
      "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nConnection: X-Internal, keep-alive\r\nX-Internal: 1\r\nKeep-Alive: timeout=5\r\n" +
        "Proxy-Authenticate: Basic\r\nX-Kept: 1\r\nX-Kept: 2\r\nContent-Length: 0\r\n\r\n",
    );
    expect((await open().send(get())).headers).toEqual([
      ["x-kept", "1"],
      ["x-kept", "2"],
      ["content-length", "0"],
    ]);
  });

  it("is not inflated", async () => {
    const packed = gzipSync("x".repeat(5000));
    upstream.answerWith((socket) => {
      socket.write(`HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: ${packed.length}\r\n\r\n`);
      socket.write(packed);
    });
    expect((await open().send(get())).body.equals(packed)).toBe(true);
  });

  it("may have early hints before it", async () => {
    upstream.answerWith("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    const answer = await open().send(get());
    expect([answer.status, answer.headers]).toEqual([200, [["content-length", "0"]]]);
  });

  it.each([
    ["a change of protocol", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nxyz"],
    ["a bare 101", "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
    ["an unasked-for 100", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
    ["a length and chunks", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
    ["chunks and a length", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"],
    ["an unknown transfer coding", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, x\r\ncontent-length: 5\r\n\r\nabcde"],
    ["a control character in a header", "HTTP/1.1 200 OK\r\nx-a: \u0001\r\ncontent-length: 0\r\n\r\n"],
    ["a bare carriage return in a header", "HTTP/1.1 200 OK\r\nx-a: b\rx-c: d\r\ncontent-length: 0\r\n\r\n"],
    ["a space before a colon", "HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n"],
    ["two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"],
    ["the same length twice", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nab"],
    ["a folded header", "HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 0\r\n\r\n"],
    ["bare line feeds", "HTTP/1.1 200 OK\ncontent-length: 0\n\n"],
    ["a status past 599", "HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n"],
    ["no HTTP at all", "SSH-2.0-OpenSSH_9.6\r\n"],
  ])("with %s is malformed, and the request counts as sent", async (_what, bytes) => {
    upstream.answerWith(bytes);
    const error = await failure(open().send(get()));
    expect([error.kind, error.sent], error.message).toEqual(["malformed", true]);
  });

  it("with 17 KiB of headers is malformed, and with 15 KiB it is not", async () => {
    upstream.answerWith(`HTTP/1.1 200 OK\r\nx-a: ${"a".repeat(17_000)}\r\ncontent-length: 0\r\n\r\n`);
    expect((await failure(open().send(get()))).kind).toBe("malformed");
    upstream.answerWith(`HTTP/1.1 200 OK\r\nx-a: ${"a".repeat(15_000)}\r\ncontent-length: 0\r\n\r\n`);
    expect((await open().send(get())).status).toBe(200);
  });

  it("with a byte too much of body is too large", async () => {
    upstream.answerWith(
      `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e8\r\n${"b".repeat(1000)}\r\n1\r\nb\r\n0\r\n\r\n`,
    );
    const error = await failure(open().send(get()));
    expect([error.kind, error.sent]).toEqual(["too_large", true]);
    expect((await open().send(get({ maxBodyBytes: 1001 }))).body).toHaveLength(1001);
  });

  it("that drips ends at the total deadline, however steady the drip, and its connection is closed", async () => {
    upstream.answerWith((socket) => {
      socket.write("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
      const drip = setInterval(() => socket.write("x"), 50);
      socket.on("close", () => clearInterval(drip));
    });
    const start = performance.now();
    const error = await failure(open().send(get({ totalTimeoutMs: 400 })));
    expect([error.kind, error.sent]).toEqual(["timeout", true]);
    expect(performance.now() - start).toBeGreaterThan(380);
    expect(performance.now() - start).toBeLessThan(2000);
    await expect.poll(() => upstream.sockets.size).toBe(0);
  });

  it("to HEAD may state a length over the limit, for no body follows", async () => {
    upstream.answerWith("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n");
    const answer = await open().send(get({ method: "HEAD" }));
    expect([answer.status, answer.body.length]).toEqual([200, 0]);
    expect(answer.headers).toContainEqual(["content-length", "5000"]);
  });

  it("that breaks off is a reset", async () => {
    for (const answer of ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"]) {
      upstream.answerWith((socket) => socket.end(answer));
      const error = await failure(open().send(get()));
      expect([error.kind, error.sent]).toEqual(["reset", true]);
    }
    expect(upstream.requests).toHaveLength(2);
  });

  it("of any bytes is an answer or an EgressError, and never harms the process", async () => {
    const egress = open();
    const line = fc.constantFrom(
      ..."HTTP/1.1 200 OK|HTTP/1.1 101 x|HTTP/1.1 100 x|HTTP/1.1 103 x|HTTP/1.0 204 |content-length: 3|content-length: 0".split(
        "|",
      ),
      ..."transfer-encoding: chunked|connection: upgrade|upgrade: h2c|keep-alive: timeout=0|3|0||abc|\u0000".split("|"),
    );
    const ends = fc.constantFrom("\r\n", "\r\n", "\r\n\r\n", "\n", "");
    const bytes = fc.array(
      fc.tuple(line, ends).map((parts) => parts.join("")),
      { maxLength: 10 },
    );
    let answered = 0;
    await fc.assert(
      fc.asyncProperty(bytes, async (lines) => {
        upstream.answerWith((socket) => socket.end(`HTTP/1.1 200 OK\r\n${lines.join("")}`));
        await egress.send(get()).then(
          () => {
            answered += 1;
          },
          (error: unknown) => expect(error).toBeInstanceOf(EgressError),
        );
      }),
      { numRuns: 200 },
    );
    expect(answered).toBeGreaterThan(0);
  });

  it("leaves nothing of a malformed header in the error", async () => {
    upstream.answerWith("HTTP/1.1 200 OK\r\nx-echo: s3cret-token\u0001\r\n\r\n");
    const error = await failure(open().send(get({ headers: [["authorization", "Bearer s3cret-token"]] })));
    const everything = JSON.stringify({ ...error }) + error.message + error.stack + String(error.cause);
    expect(everything).not.toContain("s3cret-token");
  });
});

describe("giving up", () => {
  it("closes the connection when the caller aborts", async () => {
    upstream.answerWith(() => undefined);
    const leaving = new AbortController();
    const sending = failure(open().send(get({ signals: [leaving.signal] })));
    await expect.poll(() => upstream.requests.length).toBe(1);
    leaving.abort();
    const error = await sending;
    expect([error.kind, error.sent]).toEqual(["aborted", true]);
    await expect.poll(() => upstream.sockets.size).toBe(0);
  });

  it("before the connection stands sends nothing, then or later", async () => {
    const { promise: answered, resolve: answer } = Promise.withResolvers<readonly string[]>();
    const leaving = new AbortController();
    const sending = failure(open({ resolve: () => answered }).send(get({ signals: [leaving.signal] })));
    await sleep(20);
    leaving.abort();
    expect((await sending).sent).toBe(false);
    answer(["127.0.0.1"]);
    // The connection is made now, and the request that waited for it must not use it.
    await sleep(300);
    expect(upstream.requests).toEqual([]);
    expect((await failure(open().send(get({ signals: [AbortSignal.abort()] })))).kind).toBe("aborted");
  });

  it("two hundred times leaves the pool as able as before", async () => {
    const egress = open();
    upstream.answerWith((socket) => socket.write("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nabc"));
    for (let round = 0; round < 10; round += 1) {
      const signals = [AbortSignal.timeout(150)];
      await Promise.all(Array.from({ length: 20 }, () => failure(egress.send(get({ signals })))));
    }
    upstream.answerWith("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    expect((await egress.send(get())).status).toBe(200);
  });

  it("of the process breaks what is under way", async () => {
    upstream.answerWith(() => undefined);
    const egress = open();
    const sending = failure(egress.send(get()));
    await expect.poll(() => upstream.requests.length).toBe(1);
    await egress.close();
    expect((await sending).kind).toBe("aborted");
    expect((await failure(egress.send(get()))).kind).toBe("aborted");
  });
});

it.each([
  ["x-a", "b\r\nx-evil: s3cret"],
  ["transfer-encoding", "s3cret"],
  ["Host", "s3cret.example"],
])("the header %s that would break the message is refused before anything is sent", async (name, value) => {
  const error = await failure(open().send(get({ headers: [[name, value]] })));
  expect([error.kind, error.sent, error.message.includes("s3cret")]).toEqual(["invalid", false, false]);
  expect(upstream.requests).toEqual([]);
});
