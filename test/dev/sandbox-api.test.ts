// What the sandbox's API demands and what its echo shows.
import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { call, connect, startSandbox } from "../support/sandbox.ts";

test("the API refuses a request without a token", async () => {
  const provider = await startSandbox();
  const response = await fetch(`${provider.apiUrl}/me`);
  expect(response.status).toBe(401);
  expect(response.headers.get("www-authenticate")).toBe('Bearer realm="sandbox"');
});

test("the echo shows the request, and of the token only a hash that tells two apart", async () => {
  const provider = await startSandbox();
  const [one, two] = [await connect(provider), await connect(provider)];
  const echo = await call(provider, "/echo/a%2Fb?x=1&x=2&y=", one.access_token, { method: "PATCH", body: "grüße" });
  const text = await echo.text();
  expect(text).not.toContain(one.access_token);
  const seen = JSON.parse(text);
  expect(seen).toMatchObject({
    method: "PATCH",
    path: "/api/echo/a%2Fb",
    query: { x: ["1", "2"], y: "" },
    body: "grüße",
    body_encoding: "utf8",
  });
  const hash = createHash("sha256").update(one.access_token).digest("hex").slice(0, 12);
  expect(seen.headers.authorization).toBe(`Bearer sha256:${hash}`);
  const other = JSON.parse(await (await call(provider, "/echo", two.access_token)).text());
  expect(other.headers.authorization).toMatch(/^Bearer sha256:/);
  expect(other.headers.authorization).not.toBe(seen.headers.authorization);
  const bytes = Uint8Array.of(0xff, 0x00, 0xfe);
  const binary = await (await call(provider, "/echo", one.access_token, { method: "POST", body: bytes })).json();
  expect(binary).toMatchObject({ body: "/wD+", body_encoding: "base64" });
});

test("the key areas demand a key in its place and show only its hash", async () => {
  const { url } = await startSandbox();
  const key = "sandbox-key-12345";
  const good = await fetch(`${url}/keys/header/items?limit=3`, { headers: { "x-api-key": key } });
  const text = await good.text();
  expect(text).not.toContain(key);
  const hash = `sha256:${createHash("sha256").update(key).digest("hex").slice(0, 12)}`;
  expect(JSON.parse(text)).toMatchObject({ query: { limit: "3" }, headers: { "x-api-key": hash } });
  const byQuery = await (await fetch(`${url}/keys/query/items?api_key=${key}&limit=3`)).text();
  expect(byQuery).not.toContain(key);
  expect(JSON.parse(byQuery)).toMatchObject({ path: "/keys/query/items", query: { limit: "3", api_key: hash } });

  const statuses = await Promise.all(
    [
      fetch(`${url}/keys/header/items`),
      fetch(`${url}/keys/header/items?api_key=${key}`),
      fetch(`${url}/keys/query/items`, { headers: { "x-api-key": key } }),
      fetch(`${url}/keys/header/items`, { headers: { "x-api-key": "sandbox-key-123" } }),
      fetch(`${url}/keys/query/items?api_key=another-key-123456`),
    ].map(async (response) => (await response).status),
  );
  expect(statuses).toEqual([401, 401, 401, 401, 401]);
});
