// GET /healthz against services that come and go.
import { afterAll, beforeAll, expect, it } from "vitest";
import { type GatewayFixture, startGatewayFixture } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());

async function health(): Promise<unknown> {
  const answer = await gateway.sendBare("/healthz");
  return [answer.status, await answer.json()];
}

it("is 200 while both services serve, and else 503 with the one that does not", async () => {
  expect(await health()).toEqual([200, { status: "serving", services: { account: "serving", proxy: "serving" } }]);
  gateway.proxyServer.setServing(false);
  expect(await health()).toEqual([
    503,
    { status: "not serving", services: { account: "serving", proxy: "not serving" } },
  ]);
  gateway.proxyServer.setServing(true);
  await gateway.accountServer.drain(100);
  expect(await health()).toEqual([
    503,
    { status: "not serving", services: { account: "unreachable", proxy: "serving" } },
  ]);
});
