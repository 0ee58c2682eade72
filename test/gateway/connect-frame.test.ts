// The connect page in a frame of the product's page: who may frame it, what its script is told, and how its window answers. The
// script itself is seen in a browser; what it may say to whom stands in the attributes that are looked at here.
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import {
  connectToken,
  type GatewayFixture,
  sendgrid,
  slack,
  startGatewayFixture,
  validToken,
} from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());

const allowedOrigins = ["https://app.acme-crm.com", "https://x;script-src *"];
const path = "/_static/connect.html";
const describeToken = (change = {}) =>
  gateway.changeAccount({ validateConnectToken: async () => validToken({ allowedOrigins, ...change }) });
beforeEach(() => {
  gateway.reset();
  describeToken();
});

const open = async (query = "") => gateway.sendBare(`${path}?token=${connectToken}&app=slack${query}`);
const submit = (fields: Record<string, string>, headers: Record<string, string> = {}) =>
  gateway.sendBare(path, { method: "POST", body: new URLSearchParams({ token: connectToken, ...fields }), headers });
const asked = (method: string) => gateway.asked.filter((call) => call.method === method);

/** The attributes of the page's script element. */
function scriptOf(html: string): Record<string, string> {
  const element = /<script src="\/_static\/connect\.js"([^>]*)>/.exec(html)?.[1] ?? "";
  const plain = (text: string) => text.replaceAll("&quot;", '"').replaceAll("&amp;", "&").replaceAll("&#39;", "'");
  return Object.fromEntries(
    [...element.matchAll(/data-(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, plain(value ?? "")]),
  );
}
const policyOf = (answer: Response) => answer.headers.get("content-security-policy") ?? "";

it("has a script of this server alone, which speaks to the token's origins alone", async () => {
  const answer = await open();
  expect(scriptOf(await answer.text())).toEqual({
    role: "form",
    origins: '["https://app.acme-crm.com"]',
    provider: "true",
  });
  expect(policyOf(answer)).toContain("; script-src 'self'; connect-src 'self'; ");
  expect(policyOf(answer)).toMatch(/; frame-ancestors https:\/\/app\.acme-crm\.com$/);
  const script = await gateway.sendBare("/_static/connect.js");
  expect(script.headers.get("content-type")).toBe("text/javascript; charset=utf-8");
  const text = await script.text();
  expect(text).toContain("postMessage");
  expect(text).not.toMatch(/postMessage\([^;]*["']\*["']/);
});

it("has no script behind a connect link, or for a token without origins", async () => {
  expect(await (await open("&connectLink=true")).text()).not.toContain("<script");
  describeToken({ allowedOrigins: [] });
  const answer = await open();
  expect(await answer.text()).not.toContain("<script");
  expect(policyOf(answer)).toContain("frame-ancestors 'none'");
});

it("has a button that closes it, unless the product brings its own", async () => {
  expect(await (await open()).text()).toContain('id="close"');
  expect(await (await open("&hideClose=true")).text()).not.toContain('id="close"');
});

it("says whose account it will be, and what to do with a link that somebody sent", async () => {
  const html = await (await open("&accountId=apn_9")).text();
  for (const text of ["Acme &amp; Co", "user-1", "if somebody sent you this link, close it", "apn_9"]) {
    expect(html).toContain(text);
  }
});

it("takes a form of its own pages only", async () => {
  for (const headers of [{ "sec-fetch-site": "cross-site" }, { origin: "https://evil.test" }] as const) {
    expect((await submit({ app: "slack" }, { ...headers })).status).toBe(403);
  }
  expect(asked("startConnection")).toEqual([]);
  expect((await submit({ app: "slack" }, { origin: "http://127.0.0.1:7400" })).status).toBe(303);
});

it("goes on to the provider in its window, and says so to the frame first", async () => {
  const answer = await submit({ app: "slack", framed: "true" });
  expect(answer.status).toBe(200);
  expect(answer.headers.get("set-cookie")).toMatch(/=[\w-]{43}\.framed; /);
  expect(scriptOf(await answer.text())).toMatchObject({
    role: "started",
    connection: "con_1",
    next: "https://provider.example/auth?state=the-state&code_challenge=x",
  });
});

async function comeBack(change: object) {
  const started = await submit({ app: "slack", framed: "true" });
  const cookie = (started.headers.get("set-cookie") ?? "").split(";")[0] ?? "";
  const whole = {
    id: "con_1",
    appSlug: "slack",
    externalUserId: "user-1",
    createTime: undefined,
    expireTime: undefined,
  };
  const connection = { ...whole, state: ConnectionState.SUCCEEDED, accountId: "apn_1", error: "" };
  const ended = { connection, redirectUri: "", verifier: "", allowedOrigins, ...change };
  gateway.changeAccount({
    validateConnectToken: async () => validToken({ allowedOrigins }),
    completeConnection: async () => ended,
  });
  const answer = await gateway.sendBare("/oauth/callback?state=the-state&code=c&realmId=42", { headers: { cookie } });
  return { connection, answer, script: scriptOf(await answer.text()) };
}

it("comes back into the window with the account for the frame, and stays there", async () => {
  const { answer, script } = await comeBack({ redirectUri: "https://app.acme-crm.com/done" });
  expect(answer.status).toBe(200);
  expect(script).toMatchObject({ role: "result", next: "https://app.acme-crm.com/done" });
  expect(JSON.parse(script.outcome ?? "")).toEqual({ type: "success", authProvisionId: "apn_1" });
  expect(policyOf(answer)).toContain("frame-ancestors 'none'");
  expect(asked("completeConnection")[0]?.request).toMatchObject({ parameters: { realmId: "42" } });
});

it("brings the verifier to the frame, and no account, while the connection waits for it", async () => {
  const { connection } = await comeBack({});
  const waiting = { ...connection, state: ConnectionState.AWAITING_VERIFICATION, accountId: "" };
  const { script } = await comeBack({ connection: waiting, verifier: "the-verifier" });
  expect(JSON.parse(script.outcome ?? "")).toEqual({
    type: "success",
    authProvisionId: "",
    connectionId: "con_1",
    verifier: "the-verifier",
  });
});

it("tells the frame why it failed", async () => {
  const { connection } = await comeBack({});
  const failed = { ...connection, state: ConnectionState.FAILED, accountId: "", error: "You said no." };
  const { script, answer } = await comeBack({ connection: failed });
  expect(answer.status).toBe(400);
  expect(JSON.parse(script.outcome ?? "")).toEqual({ type: "error", error: "You said no." });
});

it("tells of keys in the frame itself", async () => {
  describeToken({ app: sendgrid });
  const good = await submit({ app: "sendgrid", framed: "true", "field.api_key": "k" });
  const { role, outcome = "", origins } = scriptOf(await good.text());
  expect([role, origins]).toEqual(["result", '["https://app.acme-crm.com"]']);
  expect(JSON.parse(outcome)).toEqual({ type: "success", authProvisionId: "apn_1" });
  expect(policyOf(good)).toMatch(/frame-ancestors https:\/\/app\.acme-crm\.com$/);
});

it("asks for keys again when their test failed, without showing them", async () => {
  const message = "Test request failed. Please verify your credentials and try again.";
  gateway.changeAccount({
    validateConnectToken: async () => validToken({ allowedOrigins, app: sendgrid }),
    createAccount: () => Promise.reject(new StatusError("FAILED_PRECONDITION", "KEY_TEST_FAILED", message)),
  });
  const answer = await submit({ app: "sendgrid", "field.api_key": "hunter2hunter2" });
  const html = await answer.text();
  expect(answer.status).toBe(400);
  expect(html).toContain(message);
  expect(html).not.toContain("hunter2");
});

it("takes keys that have to be verified on to the product with the verifier", async () => {
  const successRedirectUri = "https://app.acme-crm.com/done?x=1";
  gateway.changeAccount({
    validateConnectToken: async () => validToken({ app: sendgrid, successRedirectUri }),
    createAccount: async () => ({ account: undefined, connectionId: "con_7", verifier: "v" }),
  });
  const answer = await submit({ app: "sendgrid", "field.api_key": "k" });
  expect(answer.headers.get("location")).toBe(`${successRedirectUri}&connection_id=con_7&verifier=v`);
});

it("connects an app that asks for nothing on the user's word", async () => {
  describeToken({ app: { ...slack, authType: 3 } });
  expect(await (await open()).text()).toContain(">Connect</button>");
  const answer = await submit({ app: "slack" });
  expect(answer.status).toBe(200);
  expect(asked("createAccount")[0]?.request).toMatchObject({ credential: { $case: "fields", value: { values: {} } } });
});

it("asks for the user's own OAuth client and hands it on", async () => {
  const html = await (await open("&customOauthClient=true")).text();
  expect(html).toMatch(/name="field\.client\.id" type="text"/);
  expect(html).toMatch(/name="field\.client\.secret" type="password"/);
  expect(asked("validateConnectToken").at(-1)?.request).toMatchObject({ customOauthClient: true });
  const form = {
    app: "slack",
    customOauthClient: "true",
    "field.client.id": "mine",
    "field.client.secret": "hidden-one",
  };
  await submit(form);
  expect(asked("startConnection")[0]?.request).toMatchObject({
    customOauthClient: { clientId: "mine", clientSecret: "hidden-one" },
    fields: {},
  });
  const { "field.client.id": _id, ...without } = form;
  const refused = await submit(without);
  expect(refused.status).toBe(400);
  expect(await refused.text()).not.toContain("hidden-one");
  expect(asked("startConnection")).toHaveLength(1);
});
