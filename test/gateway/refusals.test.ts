// What every endpoint has in common: how a request is refused, its id, and what of it is in the log.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { StatusError, unimplemented } from "#libs/errors.ts";
import { connectToken, type GatewayFixture, json, startGatewayFixture } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

describe("a request is refused", () => {
  it.each([
    ["without a token", {}, 401],
    ["with another scheme", { authorization: "Basic abc" }, 401],
    ["with a forged token", { authorization: "Bearer forged" }, 401],
  ])("%s with 401", async (_name, headers, status) => {
    const answer = await gateway.sendBare("/v1/connect/proj_1/accounts", {
      headers: { "x-pd-environment": "development", ...headers },
    });
    expect(answer.status).toBe(status);
    expect((await answer.json()) as object).toMatchObject({ error: expect.any(String), code: expect.any(String) });
  });

  it.each([
    ["/v1/connect/proj_1/accounts?limit=0", "limit"],
    ["/v1/connect/proj_1/accounts?limit=x", "limit"],
    ["/v1/connect/proj_1/accounts?before=b", "before"],
    ["/v1/connect/proj_1/accounts?app=a&app=b", "app"],
    ["/v1/connect/apps?sort_key=price", "sort_key"],
  ])("with 400 for %s, naming the field", async (path, field) => {
    const answer = await gateway.send(path);
    expect(answer.status).toBe(400);
    expect((await answer.json()) as object).toMatchObject({ error: expect.stringMatching(`^${field}: `) });
  });

  it("with 400 for an environment that is none, and for none where the token names none", async () => {
    for (const [value, field] of [
      ["staging", "x-pd-environment"],
      ["", "environment"],
    ] as const) {
      const answer = await gateway.send("/v1/connect/proj_1/accounts", { headers: { "x-pd-environment": value } });
      expect(answer.status).toBe(400);
      expect((await answer.json()) as object).toMatchObject({ error: expect.stringContaining(`${field}: `) });
    }
  });

  it("with 404 for another project", async () => {
    expect((await gateway.send("/v1/connect/proj_2/accounts")).status).toBe(404);
  });

  it.each([
    ["GET", "/v1/connect/usage"],
    ["POST", "/v1/connect/proj_1/actions/run"],
    ["GET", "/v1/connect/proj_1/triggers"],
    ["GET", "/nowhere"],
  ])("with 404 and JSON for %s %s, which is not served", async (method, path) => {
    const answer = await gateway.send(path, { method });
    expect(answer.status).toBe(404);
    expect(await answer.json()).toMatchObject({ code: "ENDPOINT_NOT_FOUND" });
  });

  it("with 404, never 501, for what a service has not built", async () => {
    gateway.changeAccount({
      listAccounts: () => {
        throw unimplemented("ListAccounts");
      },
    });
    const answer = await gateway.send("/v1/connect/proj_1/accounts");
    expect([answer.status, await answer.json()]).toMatchObject([404, { code: "NOT_IMPLEMENTED" }]);
  });

  it("with 400 for a path that is not valid", async () => {
    const answer = await gateway.send("/v1/connect/proj_1/accounts/%zz");
    expect([answer.status, await answer.json()]).toMatchObject([400, { code: "PATH_INVALID" }]);
  });

  it("with 413 for a body over the limit, and 415 for another media type", async () => {
    const large = await gateway.send("/v1/connect/proj_1/tokens", json({ external_user_id: "u".repeat(1024 * 1024) }));
    expect([large.status, await large.json()]).toMatchObject([413, { code: "BODY_TOO_LARGE" }]);
    const text = await gateway.send("/v1/connect/proj_1/tokens", {
      method: "POST",
      body: "x",
      headers: { "content-type": "text/plain" },
    });
    expect([text.status, await text.json()]).toMatchObject([415, { code: "MEDIA_TYPE_NOT_SUPPORTED" }]);
  });

  it("with 500 and no detail when a service fails", async () => {
    gateway.changeAccount({ listAccounts: () => Promise.reject(new Error("password=hunter2")) });
    const answer = await gateway.send("/v1/connect/proj_1/accounts");
    expect([answer.status, await answer.json()]).toEqual([500, { error: "Internal error.", code: "INTERNAL" }]);
  });

  it("with 429 and Retry-After when a limit is reached", async () => {
    gateway.changeAccount({
      listAccounts: () => {
        const metadata = { limit: "1000", retry_after_seconds: "17", reset_time: "1800000000" };
        throw new StatusError("RESOURCE_EXHAUSTED", "RATE_LIMITED", "Too many requests.", { metadata });
      },
    });
    const answer = await gateway.send("/v1/connect/proj_1/accounts");
    expect([answer.status, await answer.json()]).toMatchObject([429, { error: "Throttled" }]);
    const names = ["retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
    expect(names.map((name) => answer.headers.get(name))).toEqual(["17", "1000", "0", "1800000000"]);
  });
});

it("passes a sound request id on and gives it back; makes one otherwise", async () => {
  const answer = await gateway.send("/v1/apps", { headers: { "x-request-id": "req-12345678" } });
  expect(answer.headers.get("x-request-id")).toBe("req-12345678");
  expect(gateway.asked[0]?.call.requestId).toBe("req-12345678");
  const other = await gateway.send("/v1/apps", { headers: { "x-request-id": "bad id !" } });
  expect(other.headers.get("x-request-id")).toMatch(/^[0-9a-f-]{36}$/);
});

it("logs one line per request, with no token, path or query in it", async () => {
  await gateway.send(`/v1/connect/tokens/${connectToken}/validate?app_id=slack-query`);
  await gateway.sendBare(`/nowhere/${connectToken}?token=${connectToken}`);
  await gateway.sendBare("/v1/oauth/token", json({ grant_type: "client_credentials", client_secret: "s3cret" }));
  await expect.poll(() => gateway.logged.length).toBe(3);
  const text = gateway.logged.join("");
  for (const secret of ["ctok_", "slack-query", gateway.token, "s3cret"]) expect(text).not.toContain(secret);
  expect(JSON.parse(gateway.logged[0] ?? "")).toMatchObject({
    msg: "request",
    method: "GET",
    route: "/v1/connect/tokens/:ctok/validate",
    status: 200,
  });
});
