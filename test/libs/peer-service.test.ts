// Whose connection a call came on: read once per connection, and never taken for another connection's.
import { TLSSocket } from "node:tls";
import { expect, test } from "vitest";
import { ForwardResponse, ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { startTestServer, within } from "../support/rpc.ts";

const bound = { projectId: "proj_1", environment: 1, externalUserId: "ann" } as const;

test("a connection's certificate is read once, and each connection's caller is its own", async () => {
  const callers: (string | undefined)[] = [];
  const { gateway, account } = await startTestServer({
    definition: ProxyServiceDefinition,
    handlers: {
      forward: async (_request, { caller }) => {
        callers.push(caller.service);
        return ForwardResponse.fromPartial({});
      },
    },
    callers: { forward: [{ service: "gateway" }, { service: "account" }] },
  });
  await gateway.forward(bound, within(5_000));
  await account.forward(bound, within(5_000));
  const { getPeerCertificate } = TLSSocket.prototype;
  let reads = 0;
  TLSSocket.prototype.getPeerCertificate = function (this: TLSSocket) {
    reads += 1;
    return getPeerCertificate.call(this, true);
  } as typeof getPeerCertificate;
  try {
    for (let i = 0; i < 10; i += 1) {
      await gateway.forward(bound, within(5_000));
      await account.forward(bound, within(5_000));
    }
  } finally {
    TLSSocket.prototype.getPeerCertificate = getPeerCertificate;
  }
  expect(reads, "a later grpc-js may have hidden the session").toBe(0);
  expect(callers).toEqual(Array.from({ length: 11 }, () => ["gateway", "account"]).flat());
});

test("a call's signal does not fire once it has been answered", async () => {
  let signal: AbortSignal | undefined;
  const { gateway } = await startTestServer({
    definition: ProxyServiceDefinition,
    handlers: {
      forward: async (_request, call) => {
        ({ signal } = call);
        return ForwardResponse.fromPartial({});
      },
    },
  });
  await gateway.forward(bound, within(5_000));
  await gateway.forward(bound, within(5_000));
  expect(signal?.aborted).toBe(false);
});
