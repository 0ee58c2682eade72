// The webhook over REST: the shapes that clients know, and the key in the answers that make one and in no other.
import { afterAll, beforeEach, expect, test } from "vitest";
import { invalidField, notFound } from "#libs/errors.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { connectToken, json, startGatewayFixture, time } from "./gateway-fixture.ts";

const gateway = await startGatewayFixture();
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

const path = "/v1/connect/proj_1/webhook";
const webhook = { id: "whk_1", url: "https://hooks.acme.com/deputy", createTime: time, updateTime: time };
const seconds = time.getTime() / 1000;
const shape = {
  ...{ id: "whk_1", url: webhook.url, signing_key_set: true, created_at: seconds, updated_at: seconds },
};
const put = (body: unknown) => gateway.send(path, { ...json(body), method: "PUT" });

test("gives the webhook, and null where there is none", async () => {
  const none = await gateway.send(path);
  expect([none.status, await none.json()]).toEqual([200, { data: null }]);
  gateway.changeAccount({ getWebhook: async () => ({ webhook }) });
  const found = await gateway.send(path);
  expect([found.status, await found.json()]).toEqual([200, { data: shape }]);
  expect(gateway.asked.at(-1)?.request).toMatchObject({ projectId: "proj_1", environment: Environment.DEVELOPMENT });
});

test("sets the address, and shows the key when it was made by this", async () => {
  const made = await put({ url: webhook.url });
  expect([made.status, await made.json()]).toEqual([200, { data: { ...shape, signing_key: "whsec_new" } }]);
  expect(gateway.asked.at(-1)).toMatchObject({ method: "setWebhook", request: { url: webhook.url } });
  gateway.changeAccount({ setWebhook: async () => ({ webhook, signingKey: "" }) });
  expect(await (await put({ url: webhook.url })).json()).toEqual({ data: shape });
  expect(gateway.logged.join("\n")).not.toContain("whsec_");
});

test("makes another key", async () => {
  const answer = await gateway.send(`${path}/regenerate_signing_key`, { method: "POST" });
  expect([answer.status, await answer.json()]).toEqual([200, { data: { ...shape, signing_key: "whsec_next" } }]);
  expect(answer.headers.get("cache-control")).toBe("no-store");
});

test("deletes it", async () => {
  const answer = await gateway.send(path, { method: "DELETE" });
  expect([answer.status, await answer.text()]).toEqual([204, ""]);
  expect(gateway.asked.at(-1)).toMatchObject({ method: "deleteWebhook", request: { projectId: "proj_1" } });
});

test("says what is wrong", async () => {
  const missing = await put({});
  expect([missing.status, await missing.json()]).toMatchObject([400, { code: "INVALID_FIELD" }]);
  gateway.changeAccount({
    setWebhook: async () => {
      throw invalidField("url", "Only https upstreams are dialled.");
    },
    rotateWebhookKey: async () => {
      throw notFound("webhook");
    },
  });
  expect((await put({ url: "http://hooks.acme.com" })).status).toBe(400);
  expect((await gateway.send(`${path}/regenerate_signing_key`, { method: "POST" })).status).toBe(404);
});

test("is not for connect tokens", async () => {
  const answer = await gateway.sendBare("/v1/connect/webhook", {
    headers: { authorization: `Bearer ${connectToken}` },
  });
  expect([answer.status, await answer.json()]).toMatchObject([403, { code: "CONNECT_TOKEN_NOT_ALLOWED" }]);
});
