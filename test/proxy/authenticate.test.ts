// Who may forward: services and callers from outside, access tokens and connect tokens.
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { signToken } from "../support/stand-in-service.ts";
import { testTls } from "../support/tls.ts";
import { connectToken, forwardRequest, type ProxyFixture, startProxyFixture, userClaims } from "./proxy-fixture.ts";

let fixture: ProxyFixture;
beforeAll(async () => {
  fixture = await startProxyFixture();
});
afterAll(() => fixture.stop());
beforeEach(() => fixture.reset());

async function forwardAs(
  service: "gateway" | "account" | "operator" | "outside",
  token: string | undefined,
  change: Parameters<typeof forwardRequest>[0] = {},
) {
  const port = service === "outside" ? fixture.proxy.publicPort : fixture.proxy.internalPort;
  const client = createClient(ProxyServiceDefinition, {
    address: `127.0.0.1:${port}`,
    tls: await testTls(service === "outside" ? "gateway" : service),
    service: "proxy",
  });
  try {
    const options = { deadlineMs: Date.now() + 10_000, ...(token !== undefined && { token }) };
    return await client.forward(forwardRequest(change), options);
  } finally {
    client.close();
  }
}

it("lets in an access token through the gateway, from outside, and with the operator", async () => {
  for (const service of ["gateway", "outside", "operator"] as const) {
    expect(await forwardAs(service, fixture.token)).toMatchObject({ status: 200 });
  }
});

it("lets in nobody without a token, and no other service even with one", async () => {
  for (const service of ["gateway", "outside", "operator"] as const) {
    await expect(forwardAs(service, undefined)).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
  }
  await expect(forwardAs("account", fixture.token)).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
  await expect(forwardAs("outside", "forged")).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
  expect(fixture.upstream.requests).toEqual([]);
  expect(fixture.leases).toEqual([]);
});

it("refuses an access token that has ended", async () => {
  const token = await signToken({ sub: "cli_1", project_id: "proj_1", scope: "*" }, -1);
  await expect(forwardAs("outside", token)).rejects.toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_EXPIRED" });
});

it("exchanges a connect token once, and passes on the access token in its place", async () => {
  const bound = { projectId: "", environment: 0 as const, externalUserId: "" };
  expect(await forwardAs("outside", connectToken, bound)).toMatchObject({ status: 200 });
  expect(await forwardAs("gateway", connectToken, bound)).toMatchObject({ status: 200 });
  expect(fixture.exchanges).toEqual([connectToken]);
  expect(fixture.leases).toHaveLength(1);
  for (const { call } of fixture.leases) {
    expect(call.token).not.toContain("ctok_");
    expect(call.caller.token).toMatchObject({ subject: userClaims.sub, externalUserId: "user-1" });
  }
});

it("does not let a connect token act for another user or in another environment", async () => {
  for (const change of [{ externalUserId: "user-2" }, { environment: 2 as const }, { projectId: "proj_2" }]) {
    await expect(forwardAs("outside", connectToken, change)).rejects.toMatchObject({ code: "NOT_FOUND" });
  }
  expect(fixture.leases).toEqual([]);
});

it("refuses a connect token that the account service does not know, each time anew", async () => {
  const unknown = `ctok_${"f".repeat(32)}`;
  for (let round = 0; round < 2; round += 1) {
    await expect(forwardAs("outside", unknown)).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
  }
  expect(fixture.exchanges).toEqual([unknown, unknown]);
});
