// The provider ends access tokens behind our back: the vault believes in them, and the API answers 401. Over true processes,
// with the sandbox's own token endpoint and API.
import { afterAll, expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { freePorts } from "../../dev/ports.ts";
import { sandboxRequest } from "../../dev/sandbox-request.ts";
import { trustDomain } from "../../dev/state.ts";
import { connectSandbox, startAnother, startTestStack } from "../support/stack.ts";

const callers = 100;
const stack = await startTestStack();
const { connection, ca, call } = stack;
const proxy = await startProxy();

test("a refused token is refreshed once, and the request is sent again", async () => {
  const user = await connect("one");
  expect(await post(user)).toMatchObject({ status: 200, attempts: 1, refreshed: false });
  const before = await refreshes();
  await ofSandbox("/admin/expire-access-tokens", {});
  const answer = await post(user);
  expect(answer).toMatchObject({ status: 200, attempts: 2, refreshed: true });
  expect(JSON.parse(answer.body.toString())).toMatchObject({ method: "POST", body: "order 1" });
  expect(await refreshes()).toBe(before + 1);
  expect(await post(user)).toMatchObject({ status: 200, attempts: 1, refreshed: false });
});

test("100 callers who meet a refused token at once cost the provider one refresh, and all are served", async () => {
  const user = await connect("hundred");
  await post(user);
  const before = await refreshes();
  await ofSandbox("/admin/expire-access-tokens", {});
  const answers = await Promise.all(Array.from({ length: callers }, () => post(user)));
  expect(answers.map(({ status }) => status)).toEqual(Array(callers).fill(200));
  expect(answers.filter(({ attempts }) => attempts === 2).length, "callers who were refused").toBeGreaterThan(1);
  expect(answers.filter(({ attempts }) => attempts > 2)).toEqual([]);
  expect(await refreshes()).toBe(before + 1);
  expect((await ofSandbox("/stats")).familiesRevokedByReuse).toBe(0);
});

test("a token that is refused right after its refresh is not refreshed again: the caller sees the 401", async () => {
  const user = await connect("again");
  await ofSandbox("/admin/expire-access-tokens", {});
  expect(await post(user)).toMatchObject({ status: 200, refreshed: true });
  const before = await refreshes();
  await ofSandbox("/admin/expire-access-tokens", {});
  expect(await post(user)).toMatchObject({ status: 401, attempts: 1, refreshed: false });
  expect(await refreshes()).toBe(before);
});

interface User {
  readonly externalUserId: string;
  readonly accountId: string;
}

async function connect(externalUserId: string): Promise<User> {
  return { externalUserId, accountId: await connectSandbox(stack, externalUserId) };
}

function post(user: User) {
  const project = { projectId: connection.project_id, environment: Environment.DEVELOPMENT };
  return proxy.forward({ ...project, ...user, method: "POST", url: "/echo/x", body: Buffer.from("order 1") }, call());
}

function ofSandbox(path: string, body?: object): Promise<Record<string, unknown>> {
  return sandboxRequest(new URL(path, connection.sandbox.api_url), ca, body);
}

async function refreshes(): Promise<number> {
  const { tokenRequests } = (await ofSandbox("/stats")) as { tokenRequests: { refresh_token?: { success: number } } };
  return tokenRequests.refresh_token?.success ?? 0;
}

/** A proxy that lets a hundred requests for one account in at a time. */
async function startProxy() {
  const ports = await freePorts();
  const address = `127.0.0.1:${ports.proxyPublic}`;
  const settings = {
    DEPUTY_PROXY_INTERNAL_ADDRESS: `127.0.0.1:${ports.proxy}`,
    DEPUTY_PROXY_PUBLIC_ADDRESS: address,
    DEPUTY_LIMIT_ACCOUNT_IN_FLIGHT: String(callers),
  };
  await startAnother(stack, "proxy", { name: "proxy-2", settings });
  const client = createClient(ProxyServiceDefinition, { address, tls: { ca, trustDomain }, service: "proxy" });
  afterAll(() => client.close());
  return client;
}
