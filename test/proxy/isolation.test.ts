// Every method of ProxyService by every kind of caller, and with what is another's. That the account service gives a proxy nothing
// of another is in test/account/isolation-requests.test.ts.
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import type { ForwardRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { admission, outcomeOf } from "../support/outcomes.ts";
import { signToken } from "../support/stand-in-service.ts";
import { testTls } from "../support/tls.ts";
import { connectToken, forwardRequest, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

const definition = ProxyServiceDefinition;
const head = (change: Partial<ForwardRequest>) => forwardRequest(change);
const requests: Readonly<Record<keyof typeof definition.methods, (change: Partial<ForwardRequest>) => object>> = {
  forward: head,
  forwardStream: (change) => ({ piece: { $case: "head", value: forwardRequest(change) } }),
  explainForward: head,
};
const methods = Object.keys(definition.methods) as (keyof typeof requests)[];

let fixture: ProxyFixture;
const clients: Record<string, object & { close(): void }> = {};
beforeAll(async () => {
  fixture = await startProxyFixture();
  const connect = (tls: Parameters<typeof createClient>[1]["tls"], port: number) =>
    createClient(definition, { address: `127.0.0.1:${port}`, tls, service: "proxy" });
  for (const service of ["account", "gateway", "operator", "proxy", "vault"] as const) {
    clients[service] = connect(await testTls(service), fixture.proxy.internalPort);
  }
  const { ca, trustDomain } = await testTls("gateway");
  clients.nobody = connect({ ca, trustDomain }, fixture.proxy.publicPort);
  clients.bare = connect({ ca, trustDomain }, fixture.proxy.internalPort);
});
beforeEach(() => fixture.reset());
afterAll(async () => {
  for (const client of Object.values(clients)) client.close();
  await fixture.stop();
});

const sign = (scope: string, seconds?: number) => signToken({ sub: "cli_1", project_id: "proj_1", scope }, seconds);
const enter = (method: string, from: string, token?: string) =>
  admission({ definition, client: clients[from] ?? {} }, method, token);
const ask = (method: keyof typeof requests, change: Partial<ForwardRequest>, token: string) => {
  const options = { token, deadlineMs: Date.now() + 10_000 };
  return outcomeOf({ definition, client: clients.nobody ?? {} }, method, requests[method](change), options);
};

test.each(methods)(
  "%s lets in who has connect:proxy, straight, through the gateway and with the operator",
  async (method) => {
    const good = await sign("connect:proxy");
    for (const from of ["nobody", "gateway", "operator"]) {
      expect(await enter(method, from, good)).toBe("admitted");
      expect(await enter(method, from, connectToken)).toBe("admitted");
      expect(await enter(method, from)).toBe("UNAUTHENTICATED TOKEN_REQUIRED");
      expect(await enter(method, from, await sign("connect:accounts:read connect:projects:write"))).toBe(
        "PERMISSION_DENIED SCOPE_MISSING",
      );
      expect(await enter(method, from, await sign("connect:proxy", -1))).toBe("UNAUTHENTICATED TOKEN_EXPIRED");
      expect(await enter(method, from, "nonsense")).toBe("UNAUTHENTICATED TOKEN_INVALID");
    }
    for (const from of ["account", "proxy", "vault"]) {
      expect(await enter(method, from, good)).toBe("PERMISSION_DENIED CALLER_NOT_ALLOWED");
    }
    expect(await enter(method, "bare", good)).toMatch(/^UNAVAILABLE/);
  },
);

test.each(methods)("%s tells of another's what it tells of nothing, and sends nothing", async (method) => {
  const token = await sign("connect:proxy");
  const absent = (what: string) => ({ kind: "refused", code: "NOT_FOUND", message: `No such ${what}.` });
  expect(await ask(method, { projectId: "proj_2" }, token)).toMatchObject(absent("project"));
  const foreign = await ask(method, { externalUserId: "user-2" }, token);
  expect(foreign).toMatchObject(absent("account"));
  expect(await ask(method, { accountId: "apn_absent" }, token)).toEqual(foreign);
  expect(await ask(method, { environment: 2 }, connectToken)).toMatchObject(absent("environment"));
  expect(await ask(method, { externalUserId: "user-2" }, connectToken)).toMatchObject(absent("user"));
  expect(fixture.upstream.requests).toEqual([]);
  expect(await ask(method, {}, token)).toMatchObject({ kind: "ok" });
});
