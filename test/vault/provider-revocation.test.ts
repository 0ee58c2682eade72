// What is sent to a provider's revocation endpoint: RFC 7009, and what an app's entry says instead; and what the answers mean.
import { once } from "node:events";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { afterAll, expect, test } from "vitest";
import { loadCatalog } from "#libs/catalog.ts";
import { openEgress } from "#libs/egress.ts";
import { isOauthApp } from "../../services/vault/provider.ts";
import { revokeToken } from "../../services/vault/provider-revocation.ts";
import { testTls } from "../support/tls.ts";

const tls = await testTls("sandbox");
const seen: { method?: string; url?: string; headers?: NodeJS.Dict<string | string[]>; body?: string }[] = [];
let answer: { status: number; body: string; headers?: Record<string, string> } = { status: 200, body: "" };
const server = createServer({ key: tls.key ?? "", cert: tls.certificate ?? "" }, async (request, response) => {
  const { method = "", url = "", headers } = request;
  seen.push({ method, url, headers, body: Buffer.concat(await request.toArray()).toString() });
  response.writeHead(answer.status, answer.headers).end(answer.body);
});
server.listen(0, "127.0.0.1");
await once(server, "listening");
const host = `localhost:${(server.address() as AddressInfo).port}`;
const egress = openEgress({ exemptTargets: [host], extraCa: tls.ca });
afterAll(async () => {
  await egress.close();
  server.close();
});

const sandbox = loadCatalog("catalog", { production: false }).get("sandbox");
if (sandbox === undefined || !isOauthApp(sandbox)) throw new Error("the sandbox is not in the catalog");
const app = sandbox;
type Entry = NonNullable<typeof app.oauth2.revoke>;

const standard: Entry = {
  ...{ url: `https://${host}/revoke`, method: "POST", content_type: "form", token_parameter: "token" },
  ...{ parameters: {}, tokens: ["refresh_token", "access_token"] },
};

function revoke(entry: Partial<Entry> = {}, hint: "refresh_token" | "access_token" = "refresh_token") {
  const way = { ...standard, ...entry };
  const changed = { ...app, oauth2: { ...app.oauth2, revoke: way } };
  const context = { app: changed, client: { oauthAppId: "oa_1", clientId: "me", secrets: ["old", "new"] }, fields: {} };
  return revokeToken({ egress, exemptTargets: [host] }, context, { token: "the-token", hint });
}

const basic = (secret: string) => `Basic ${btoa(`me:${secret}`)}`;

test.each<[string, Partial<Entry>, object]>([
  [
    "RFC 7009",
    {},
    {
      method: "POST",
      url: "/revoke",
      body: "token=the-token&token_type_hint=refresh_token",
      authorization: basic("old"),
    },
  ],
  [
    "its own parameters, the secret in the form",
    { token_parameter: "access_token", parameters: { all: "true" }, client_authentication: "client_secret_post" },
    { method: "POST", body: "all=true&access_token=the-token&client_id=me&client_secret=old" },
  ],
  [
    "DELETE with JSON",
    { method: "DELETE", content_type: "json", token_parameter: "access_token" },
    { method: "DELETE", body: '{"access_token":"the-token"}', contentType: "application/json" },
  ],
  [
    "GET, authenticated by the token itself",
    { method: "GET", client_authentication: "bearer", token_parameter: "t" },
    { method: "GET", url: "/revoke?t=the-token", body: "", authorization: "Bearer the-token" },
  ],
])("asks by %s", async (_, entry, expected) => {
  answer = { status: 200, body: "" };
  expect(await revoke(entry)).toEqual({ kind: "revoked", refusedSecrets: 0 });
  const { headers, ...request } = seen.at(-1) ?? {};
  expect({
    ...request,
    ...{ authorization: headers?.authorization, contentType: headers?.["content-type"] },
  }).toMatchObject(expected);
});

test("sends no token of a kind that the endpoint does not take", async () => {
  const before = seen.length;
  expect(await revoke({ tokens: ["access_token"] })).toEqual({ kind: "refused", error: "REVOCATION_UNSUPPORTED" });
  expect(seen).toHaveLength(before);
});

test.each<[number, string, object]>([
  [204, "", { kind: "revoked", refusedSecrets: 0 }],
  [400, '{"error":"invalid_token"}', { kind: "revoked", refusedSecrets: 0 }],
  [200, '{"ok":false,"error":"ratelimited"}', { kind: "retry", error: "ratelimited" }],
  [400, '{"error":"unsupported_token_type"}', { kind: "refused", error: "REVOCATION_UNSUPPORTED" }],
  [400, '{"error":"invalid_request"}', { kind: "refused", error: "invalid_request" }],
  [500, "<html>", { kind: "retry", error: "HTTP_500" }],
  [302, "", { kind: "retry", error: "HTTP_302" }],
])("takes %i %s for %o", async (status, body, outcome) => {
  answer = { status, body };
  expect(await revoke()).toEqual(outcome);
});

test("says how long the provider wants to be left alone, and tries the other secret when the client is refused", async () => {
  answer = { status: 429, body: "", headers: { "retry-after": "7" } };
  expect(await revoke()).toEqual({ kind: "retry", error: "HTTP_429", retryAfterSeconds: 7 });
  answer = { status: 401, body: '{"error":"invalid_client"}' };
  const before = seen.length;
  expect(await revoke()).toMatchObject({ kind: "retry", error: "invalid_client" });
  expect(seen.slice(before).map(({ headers }) => headers?.authorization)).toEqual([basic("old"), basic("new")]);
});
