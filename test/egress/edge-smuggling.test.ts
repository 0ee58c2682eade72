// Raw bytes at the gateway's door: each edge-smuggling vector, on a connection of its own, with a second request behind the
// first that a smuggled one would be taken for.
import { connect } from "node:net";
import { afterAll, beforeAll, beforeEach, expect } from "vitest";
import { type GatewayFixture, startGatewayFixture } from "../gateway/gateway-fixture.ts";
import { type Action, testVectors } from "../support/integration-vectors.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

const host = () => new URL(gateway.url).host;

/** What comes back until the server closes, or falls silent for a while; and how much it took. */
function exchange(
  bytes: string,
): Promise<{ readonly answer: string; readonly closed: boolean; readonly taken: number }> {
  return new Promise((resolve) => {
    const { hostname, port } = new URL(gateway.url);
    const socket = connect(Number(port), hostname);
    let [answer, closed] = ["", false];
    const end = () => {
      socket.destroy();
      resolve({ answer, closed, taken: socket.bytesWritten - socket.writableLength });
    };
    socket.setTimeout(1500, end);
    socket.on("data", (chunk) => {
      answer += chunk.toString("latin1");
    });
    socket.on("error", () => undefined);
    socket.on("close", () => {
      closed = true;
      end();
    });
    socket.write(bytes, "latin1");
  });
}

/** Behind each request another one; answered, it would be 200. */
const behind = () => `GET /_static/connect.css HTTP/1.1\r\nHost: ${host()}\r\n\r\n`;

const statuses = (answer: string) => [...answer.matchAll(/^HTTP\/1\.1 (\d{3})/gm)].map(([, status]) => status);

/** A POST with these headers is answered with 400 alone, and its connection is closed. */
const refused =
  (headers: string, body = "5\r\nabcde\r\n0\r\n\r\n"): Action =>
  async () => {
    const { answer, closed } = await exchange(`POST / HTTP/1.1\r\nHost: ${host()}\r\n${headers}\r\n${body}${behind()}`);
    expect([statuses(answer), closed]).toEqual([["400"], true]);
    expect(gateway.asked).toEqual([]);
  };

testVectors("edge-smuggling", {
  "edge-smuggling-001": refused("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"),
  "edge-smuggling-002": refused("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
  "edge-smuggling-003": refused("Transfer-Encoding:\x0bchunked\r\n"),
  "edge-smuggling-004": refused("Content-Length: +5\r\n", "abcde"),
  "edge-smuggling-005": refused("Content-Length : 5\r\n", "abcde"),
  "edge-smuggling-006": refused("Content-Length: 5, 6\r\n", "abcdef"),
  "edge-smuggling-008": async () => {
    const head = `POST /v1/oauth/token HTTP/1.1\r\nHost: ${host()}\r\nContent-Type: application/json\r\n`;
    const { answer, closed } = await exchange(
      `${head}Transfer-Encoding: chunked\r\n\r\n2;${"x".repeat(1024 * 1024)}\r\n{}\r\n0\r\n\r\n${behind()}`,
    );
    expect([statuses(answer).filter((status) => status !== "413" && status !== "400"), closed]).toEqual([[], true]);
    expect(gateway.asked).toEqual([]);
  },
  "edge-smuggling-009": async () => {
    const get = (target: string) => exchange(`GET ${target} HTTP/1.1\r\nHost: ${host()}\r\n\r\n${behind()}`);
    for (const path of ["/", "/_static/connect.css", "/v1/connect/proj_1/accounts"]) {
      const { answer, closed } = await get(`http://evil.com${path}`);
      expect([statuses(answer), closed], path).toEqual([["400"], true]);
    }
    expect(statuses((await get(`http://${host()}/_static/connect.css`)).answer)).toEqual(["200", "200"]);
    expect(gateway.asked).toEqual([]);
  },
  "edge-smuggling-010": refused("Host: evil.com\r\nContent-Length: 5\r\n", "abcde"),
  "edge-smuggling-012": async () => {
    const target = Buffer.from("/x").toString("base64url");
    const { answer } = await exchange(
      `GET /v1/connect/proj_1/proxy/${target}?external_user_id=user-1&account_id=apn_1 HTTP/1.1\r\nHost: ${host()}\r\n` +
        `Authorization: Bearer ${gateway.token}\r\nx-pd-environment: development\r\nx-pd-proxy-x-a: 1\r\nX-Request-Id: req-1\r\n` +
        "Connection: close, X-Forwarded-For, Authorization, x-pd-proxy-x-a, x-request-id, x-content-type-options\r\n\r\n",
    );
    expect(statuses(answer)).toEqual(["200"]);
    expect(answer).toMatch(/^x-content-type-options: nosniff\r$/im);
    expect(gateway.asked[0]?.request).toMatchObject({ headers: [{ name: "x-a", value: "1" }] });
    expect(gateway.asked[0]?.call).toMatchObject({ token: gateway.token, requestId: expect.any(String) });
  },
});
