// Which pages may call the REST API with a connect token, as a browser asks and as it obeys.
import { beforeEach, describe, expect, it } from "vitest";
import { ValidateConnectTokenResponse } from "#proto/deputy/account/v1/connect.ts";
import { connectToken, type GatewayFixture, startGatewayFixture, validToken } from "./gateway-fixture.ts";

const origin = "https://app.acme-crm.com";
const gatewayUrl = "https://connect.acme-crm.com";
let gateway: GatewayFixture;
// One for each test: what a gateway has heard of a token it keeps for a while.
beforeEach(async () => {
  gateway = await startGatewayFixture(gatewayUrl);
  gateway.changeAccount({ validateConnectToken: async () => validToken({ allowedOrigins: [origin] }) });
  return () => gateway.stop();
});

const get = (path: string, headers: Record<string, string>) => gateway.sendBare(path, { headers });
const asUser = (from: string) => ({ origin: from, authorization: `Bearer ${connectToken}` });
const asked = (method: string) => gateway.asked.filter((call) => call.method === method);

describe("a preflight", () => {
  it.each(["/v1/connect/accounts", "/v1/connect//proxy/L3g", "/v1/connect/proj_1/accounts/apn_1"])(
    "for %s is answered to any page, and asks nobody",
    async (path) => {
      const answer = await gateway.sendBare(path, {
        method: "OPTIONS",
        headers: {
          origin: "https://anybody.test",
          "access-control-request-method": "POST",
          "access-control-request-headers": "authorization,content-type,x-fern-language,x-pd-environment",
        },
      });
      expect(answer.status).toBe(204);
      expect(answer.headers.get("access-control-allow-origin")).toBe("https://anybody.test");
      expect(answer.headers.get("access-control-allow-headers")).toBe(
        "authorization,content-type,x-fern-language,x-pd-environment",
      );
      for (const method of ["GET", "POST", "PUT", "PATCH", "DELETE"]) {
        expect(answer.headers.get("access-control-allow-methods")).toContain(method);
      }
      expect(answer.headers.has("access-control-allow-credentials")).toBe(false);
      expect(gateway.asked).toEqual([]);
    },
  );

  it("is none without its header, and none for pages", async () => {
    const bare = await gateway.sendBare("/v1/connect/accounts", { method: "OPTIONS", headers: { origin } });
    expect(bare.status).toBe(404);
    const page = await gateway.sendBare("/_static/connect.html", {
      method: "OPTIONS",
      headers: { origin, "access-control-request-method": "POST" },
    });
    expect([page.status, page.headers.get("access-control-allow-origin")]).toEqual([404, null]);
  });
});

describe("a request", () => {
  it("from a page of the token's origins may be read by it, errors too", async () => {
    for (const [path, status] of [
      ["accounts", 200],
      ["accounts/apn_nobody", 404],
    ] as const) {
      const answer = await get(`/v1/connect/${path}`, asUser(origin));
      expect([answer.status, answer.headers.get("access-control-allow-origin")]).toEqual([status, origin]);
      expect(answer.headers.get("vary")).toBe("origin");
      expect(answer.headers.get("access-control-expose-headers")).toContain("retry-after");
    }
    // Heard once.
    expect(asked("validateConnectToken")).toHaveLength(1);
  });

  it.each(["https://evil.test", "https://app.acme-crm.com.evil.test", "http://app.acme-crm.com", "null"])(
    "from a page of %s is refused before anybody is asked for anything",
    async (from) => {
      const answer = await get("/v1/connect/accounts", asUser(from));
      expect([answer.status, await answer.json()]).toMatchObject([403, { code: "ORIGIN_NOT_ALLOWED" }]);
      expect(answer.headers.has("access-control-allow-origin")).toBe(false);
      expect(asked("listAccounts")).toEqual([]);
    },
  );

  it("with a used token is judged by its origins as well", async () => {
    const used = ValidateConnectTokenResponse.fromPartial({ error: "Used.", allowedOrigins: [origin] });
    gateway.changeAccount({ validateConnectToken: async () => used });
    expect((await get("/v1/connect/accounts", asUser("https://evil.test"))).status).toBe(403);
    expect((await get("/v1/connect/accounts", asUser(origin))).status).toBe(200);
  });

  it("with a token that names no origin is from no page", async () => {
    gateway.changeAccount({ validateConnectToken: async () => validToken({ allowedOrigins: [] }) });
    expect((await get("/v1/connect/accounts", asUser(origin))).status).toBe(403);
  });

  it("of the connect page itself, and of a server without a page, asks for no origin", async () => {
    expect((await get("/v1/connect/accounts", asUser(gatewayUrl))).status).toBe(200);
    expect((await get("/v1/connect/accounts", { authorization: `Bearer ${connectToken}` })).status).toBe(200);
    expect(asked("validateConnectToken")).toEqual([]);
  });

  it("with an access token is answered, and no page may read it", async () => {
    const answer = await gateway.send("/v1/connect/proj_1/accounts", { headers: { origin } });
    expect([answer.status, answer.headers.get("access-control-allow-origin")]).toEqual([200, null]);
  });
});
