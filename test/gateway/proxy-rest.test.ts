// Forwarded requests over REST: the targets, headers and bodies that clients send, and what of an answer reaches them.
import { request as httpRequest } from "node:http";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { ForwardResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { connectToken, type GatewayFixture, json, startGatewayFixture } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

const who = "external_user_id=user-1&account_id=apn_1";
const forwarded = () => gateway.asked[0]?.request ?? {};
const base = (text: string, encoding: "base64" | "base64url" = "base64url") => Buffer.from(text).toString(encoding);

/** What an upstream answers from now on. */
function upstream(status: number, headers: Record<string, string>, body = "") {
  const list = Object.entries(headers).map(([name, value]) => ({ name, value }));
  gateway.changeProxy({
    forward: async () => ForwardResponse.fromPartial({ status, headers: list, body: Buffer.from(body) }),
  });
}

describe("the target", () => {
  // Captured from an existing client: standard base64, padded and percent-encoded.
  it.each([
    [
      "aHR0cHM6Ly9zbGFjay5jb20vYXBpL3VzZXJzLmxpc3Q%2FbGltaXQ9MTAmdGFncz1hJnRhZ3M9YiZmJTVCeCU1RD0xJm49",
      "https://slack.com/api/users.list?limit=10&tags=a&tags=b&f%5Bx%5D=1&n=",
    ],
    ["L2FwaS92Mi90aWNrZXRzP3BhZ2U9MiZxPcOkIMO2", "/api/v2/tickets?page=2&q=ä ö"],
    ["aHR0cHM6Ly9hLmV4YW1wbGUvP3E9fn5%2BPz8%2FPj4%2Bw7%2FDvw%3D%3D", "https://a.example/?q=~~~???>>>ÿÿ"],
  ])("%s is understood", async (segment, url) => {
    const answer = await gateway.send(`/v1/connect/proj_1/proxy/${segment}?${who}`);
    expect(answer.status).toBe(200);
    expect(forwarded()).toMatchObject({ url, projectId: "proj_1", externalUserId: "user-1", accountId: "apn_1" });
  });

  it("is the same in the URL-safe alphabet, padded or not, and with raw padding", async () => {
    const url = "https://a.example/?q=~~~???>>>ÿÿx";
    const standard = base(url, "base64");
    const safe = standard.replaceAll("+", "-").replaceAll("/", "_");
    expect(safe).toMatch(/-.*_.*=$/);
    for (const segment of [encodeURIComponent(standard), safe, safe.replaceAll("=", "")]) {
      gateway.asked.length = 0;
      await gateway.send(`/v1/connect/proj_1/proxy/${segment}?${who}`);
      expect(forwarded().url).toBe(url);
    }
  });

  it.each([
    ["!!!!", "URL_NOT_BASE64"],
    ["abcde", "URL_BASE64_LENGTH"],
  ])("%s is refused with 400 and the rule", async (segment, code) => {
    const answer = await gateway.send(`/v1/connect/proj_1/proxy/${segment}?${who}`);
    expect([answer.status, await answer.json()]).toMatchObject([400, { code, error: expect.any(String) }]);
    expect(gateway.asked).toEqual([]);
  });

  it.each(["/v1/connect//proxy/", "/v1/connect/proxy/"])("comes with a connect token under %s", async (prefix) => {
    const headers = { authorization: `Bearer ${connectToken}` };
    const answer = await gateway.sendBare(`${prefix}aHR0cHM6Ly94L3k%3D?${who}`, { headers });
    expect(answer.status).toBe(200);
    expect(forwarded()).toMatchObject({ url: "https://x/y", projectId: "proj_1" });
  });

  it("may be as long as a URL may be", async () => {
    const url = `/${"x".repeat(8191)}`;
    const answer = await gateway.send(`/v1/connect/proj_1/proxy/${encodeURIComponent(base(url, "base64"))}?${who}`);
    expect(answer.status).toBe(200);
    expect(forwarded().url).toBe(url);
  });
});

describe("a request", () => {
  const path = `/v1/connect/proj_1/proxy/${base("/x")}?${who}`;

  it.each(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])("goes out as %s", async (method) => {
    expect((await gateway.send(path, { method })).status).toBe(200);
    expect(forwarded().method).toBe(method);
  });

  it("takes prefixed headers along without the prefix, and no others", async () => {
    await gateway.send(path, {
      headers: {
        "X-PD-Proxy-X-Custom": "v",
        "x-pd-proxy-accept": "text/csv",
        "x-other": "no",
        "accept-language": "de",
      },
    });
    expect(forwarded().headers).toEqual([
      { name: "x-custom", value: "v" },
      { name: "accept", value: "text/csv" },
    ]);
  });

  it("passes a body on byte for byte, with its type unless another is given for the upstream", async () => {
    const body = '{"text":"hi","nul":null,"nested":{"a":[1,{"camelCase":1}]} }';
    await gateway.send(path, { ...json(""), body });
    expect(forwarded().headers).toEqual([{ name: "content-type", value: "application/json" }]);
    expect(String(forwarded().body)).toBe(body);
    gateway.asked.length = 0;
    const bytes = new Uint8Array([0, 255, 128, 13, 10]);
    const headers = { "content-type": "image/png", "x-pd-proxy-content-type": "application/pdf" };
    await gateway.send(path, { method: "PUT", body: bytes, headers });
    expect(forwarded().headers).toEqual([{ name: "content-type", value: "application/pdf" }]);
    expect([...(forwarded().body as Buffer)]).toEqual([...bytes]);
  });

  it("carries 8 MiB, and is refused with 413 beyond", async () => {
    const largest = Buffer.alloc(8 * 1024 * 1024, "x");
    const headers = { "content-type": "application/octet-stream" };
    expect((await gateway.send(path, { method: "POST", body: largest, headers })).status).toBe(200);
    expect((forwarded().body as Buffer).length).toBe(largest.length);
    const larger = Buffer.alloc(largest.length + 1, "x");
    const answer = await gateway.send(path, { method: "POST", body: larger, headers });
    expect([answer.status, await answer.json()]).toMatchObject([413, { code: "BODY_TOO_LARGE" }]);
  });

  it("is given up upstream when the client leaves", async () => {
    let seen: (signal: AbortSignal) => void = () => undefined;
    const signalSeen = new Promise<AbortSignal>((resolve) => {
      seen = resolve;
    });
    gateway.changeProxy({
      forward: (_request, call) => {
        seen(call.signal);
        return new Promise(() => undefined);
      },
    });
    const headers = { authorization: `Bearer ${gateway.token}`, "x-pd-environment": "development" };
    const request = httpRequest(`${gateway.url}${path}`, { headers });
    request.on("error", () => undefined);
    request.end();
    const signal = await signalSeen;
    request.destroy();
    await expect.poll(() => signal.aborted).toBe(true);
  });
});

describe("an answer", () => {
  const path = `/v1/connect/proj_1/proxy/${base("/x")}?${who}`;

  it("comes back with the upstream's status, type and body as they are", async () => {
    for (const [status, type, body] of [
      [200, "application/pdf", "%PDF"],
      [404, "application/json", '{"no":1}'],
      [401, "application/vnd.api+json", "{}"],
      [500, "text/plain", "oops"],
      [201, "application/json", "[]"],
    ] as const) {
      upstream(
        status,
        { "content-type": type, "x-ratelimit-remaining": "7", "content-length": String(body.length) },
        body,
      );
      const answer = await gateway.send(path);
      expect([answer.status, answer.headers.get("content-type"), await answer.text()]).toEqual([status, type, body]);
      expect(answer.headers.get("x-ratelimit-remaining")).toBe("7");
    }
  });

  it("may be empty", async () => {
    upstream(204, {});
    const answer = await gateway.send(path);
    expect([answer.status, await answer.text()]).toEqual([204, ""]);
  });

  it("to HEAD keeps the length of the body that is not there", async () => {
    upstream(200, { "content-length": "1234", "content-type": "text/plain" });
    const answer = await gateway.send(path, { method: "HEAD" });
    expect([answer.status, answer.headers.get("content-length")]).toEqual([200, "1234"]);
  });

  it.each([301, 302, 303, 307, 308])("of %i keeps its status but gives no Location to follow", async (status) => {
    upstream(status, { location: "https://evil.example/steal" });
    const answer = await gateway.send(path);
    expect(answer.status).toBe(status);
    expect(answer.headers.has("location")).toBe(false);
    expect(answer.headers.get("x-upstream-location")).toBe("https://evil.example/steal");
  });

  it("cannot speak or run as this server", async () => {
    upstream(
      200,
      {
        "content-type": "text/html",
        "strict-transport-security": "max-age=1",
        "clear-site-data": '"*"',
        "alt-svc": 'h3=":443"',
        refresh: "0;url=https://evil.example/",
        "x-accel-redirect": "/internal/secrets",
        "x-sendfile": "/etc/passwd",
        "access-control-allow-origin": "*",
        "content-security-policy": "default-src *",
        "content-disposition": "inline; filename=x.html",
      },
      "<script>1</script>",
    );
    const { headers } = await gateway.send(path);
    for (const name of [
      "strict-transport-security",
      "clear-site-data",
      "alt-svc",
      "refresh",
      "x-accel-redirect",
      "x-sendfile",
      "access-control-allow-origin",
    ]) {
      expect(headers.has(name), name).toBe(false);
    }
    expect(headers.get("content-security-policy")).toBe("sandbox; default-src 'none'");
    expect(headers.get("x-content-type-options")).toBe("nosniff");
    expect(headers.get("content-disposition")).toBe("attachment");
  });

  it("keeps the name that an upstream gives to a download", async () => {
    upstream(200, { "content-disposition": 'attachment; filename="a.pdf"', link: "<a>" }, "x");
    expect((await gateway.send(path)).headers.get("content-disposition")).toBe('attachment; filename="a.pdf"');
  });
});

describe("a failure", () => {
  const path = `/v1/connect/proj_1/proxy/${base("/x")}?${who}`;

  it.each([
    ["DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT", 504, "text"],
    ["UNAVAILABLE", "UPSTREAM_UNREACHABLE", 502, "text"],
    ["UNAVAILABLE", "UPSTREAM_RESET", 502, "text"],
    ["UNAVAILABLE", "NO_ADDRESS", 502, "text"],
    ["UNAVAILABLE", "REFRESH_FAILING", 502, "text"],
    ["UNAVAILABLE", "UNAVAILABLE", 503, "text"],
    ["RESOURCE_EXHAUSTED", "UPSTREAM_TOO_LARGE", 424, "text"],
    ["FAILED_PRECONDITION", "UPSTREAM_MALFORMED", 424, "text"],
    ["UNAVAILABLE", "UPSTREAM_MALFORMED", 502, "text"],
    ["FAILED_PRECONDITION", "PROXY_DISABLED", 400, "App record not found"],
    ["FAILED_PRECONDITION", "ACCOUNT_REVOKED", 400, "text"],
    ["PERMISSION_DENIED", "HOST_NOT_ALLOWED", 400, "text"],
    ["PERMISSION_DENIED", "ADDRESS_NOT_GLOBAL", 400, "text"],
    ["PERMISSION_DENIED", "SCOPE_MISSING", 403, "text"],
    ["PERMISSION_DENIED", "MEMBER_NOT_ALLOWED", 403, "text"],
    ["INVALID_ARGUMENT", "HEADER_RESTRICTED", 400, "text"],
    ["NOT_FOUND", "ACCOUNT_NOT_FOUND", 404, "text"],
    ["UNIMPLEMENTED", "NOT_IMPLEMENTED", 404, "text"],
  ] as const)("%s %s is %i and names the rule", async (code, reason, status, error) => {
    gateway.changeProxy({ forward: () => Promise.reject(new StatusError(code, reason, "text")) });
    const answer = await gateway.send(path);
    expect([answer.status, await answer.json()]).toEqual([status, { error, code: reason }]);
  });
});

it("a request with two Host headers is refused", async () => {
  const status = await new Promise<number | undefined>((resolve, reject) => {
    const headers = ["host", "a.example", "host", "b.example"];
    httpRequest(`${gateway.url}/healthz`, { headers }, (answer) => resolve(answer.resume().statusCode))
      .on("error", reject)
      .end();
  });
  expect(status).toBe(400);
});
