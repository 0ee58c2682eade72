// Connections over REST: how far one is, and the backend's word that completes one.
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { connectToken, type GatewayFixture, json, startGatewayFixture, time } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

it("tells how far a connection is, to its user as well", async () => {
  const answer = await gateway.sendBare("/v1/connect/connections/con_1", {
    headers: { authorization: `Bearer ${connectToken}` },
  });
  expect([answer.status, await answer.json()]).toEqual([
    200,
    {
      id: "con_1",
      state: "pending",
      app: "slack",
      external_id: "user-1",
      account_id: null,
      error: null,
      created_at: time.toISOString(),
      expires_at: time.toISOString(),
    },
  ]);
  expect((await gateway.send("/v1/connect/proj_1/connections/con_2")).status).toBe(404);
});

it("is verified by a backend for the user who is signed in there", async () => {
  const body = { external_user_id: "user-1", verifier: "the-verifier" };
  const answer = await gateway.send("/v1/connect/proj_1/connections/con_1/verify", json(body));
  expect([answer.status, await answer.json()]).toMatchObject([200, { state: "succeeded", account_id: "apn_1" }]);
  expect(gateway.asked).toMatchObject([
    {
      method: "verifyConnection",
      request: {
        projectId: "proj_1",
        environment: 1,
        externalUserId: "user-1",
        connectionId: "con_1",
        verifier: "the-verifier",
      },
    },
  ]);
  await expect.poll(() => gateway.logged.length).toBe(1);
  expect(gateway.logged.join("")).not.toContain("the-verifier");
});

it("is verified for nobody in particular by nobody, and by no browser", async () => {
  const path = "/v1/connect/proj_1/connections/con_1/verify";
  const nobody = await gateway.send(path, json({ verifier: "v" }));
  expect([nobody.status, await nobody.json()]).toMatchObject([
    400,
    { error: expect.stringMatching(/^external_user_id: /) },
  ]);
  const { method, body, headers } = json({ external_user_id: "user-1", verifier: "v" });
  const init = { method, body, headers: { ...headers, authorization: `Bearer ${connectToken}` } };
  expect((await gateway.sendBare("/v1/connect/connections/con_1/verify", init)).status).toBe(403);
  expect(gateway.asked).toEqual([]);
});
