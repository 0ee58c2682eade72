// The connections of a gRPC server: how long a call may take, how many at a time, peers that vanish, and what a drain ends.
import { once } from "node:events";
import http2 from "node:http2";
import { type AddressInfo, connect as connectTcp, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import { describe, expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { WatchAccountsResponse } from "#proto/deputy/account/v1/events.ts";
import { ForwardResponse, ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { atEnd, failure, startTestServer, within } from "../support/rpc.ts";
import { testTls } from "../support/tls.ts";

const definition = ProxyServiceDefinition;
const bound = { projectId: "proj_1", environment: Environment.DEVELOPMENT, externalUserId: "ann" };
const forward = async () => ForwardResponse.fromPartial({});

/** Passes bytes on in both directions, until it is told to keep them, without closing anything. */
async function silenceableRelay(port: number): Promise<{ port: number; fallSilent(): void }> {
  const sockets: Socket[] = [];
  const relay = createServer((near) => {
    const far = connectTcp(port, "127.0.0.1");
    sockets.push(near, far);
    near.pipe(far).pipe(near);
    for (const socket of [near, far]) socket.on("error", () => undefined);
  }).listen(0, "127.0.0.1");
  await once(relay, "listening");
  atEnd(() => {
    relay.close();
    for (const socket of sockets) socket.destroy();
  });
  return {
    port: (relay.address() as AddressInfo).port,
    fallSilent() {
      for (const socket of sockets) socket.unpipe().resume();
    },
  };
}

describe("limits of time", () => {
  test("refuse a call that may take more than an hour", async () => {
    const { gateway } = await startTestServer({ definition, handlers: { forward } });
    await gateway.forward(bound, within(3_590_000));
    const error = await failure(gateway.forward(bound, within(3_610_000)));
    expect(error).toMatchObject({ code: "INVALID_ARGUMENT", reason: "DEADLINE_TOO_FAR" });
  });

  test("give up a peer that vanished without a word, long before the deadline", async () => {
    const { server } = await startTestServer({ definition, handlers: { forward } });
    const relay = await silenceableRelay(server.internalPort);
    const client = createClient(definition, {
      address: `127.0.0.1:${relay.port}`,
      tls: await testTls("gateway"),
      service: "proxy",
    });
    atEnd(() => client.close());
    await client.forward(bound, within(5000));
    relay.fallSilent();
    expect((await failure(client.forward(bound, within(60_000)))).code).toBe("UNAVAILABLE");
    // Five seconds to the ping, five for its answer.
  }, 20_000);
});

test("takes no more than a thousand calls at a time from one connection", async () => {
  const { server } = await startTestServer({ definition });
  const { ca } = await testTls("gateway");
  const session = http2.connect(`https://127.0.0.1:${server.publicPort}`, { ca, checkServerIdentity: () => undefined });
  atEnd(() => session.destroy());
  const [settings] = await once(session, "remoteSettings");
  expect(settings.maxConcurrentStreams).toBe(1000);
});

describe("a drain", () => {
  test("tells a stream without end to end, and its caller to come again", async () => {
    let aborted = false;
    const { server, gateway } = await startTestServer({
      definition: AccountServiceDefinition,
      handlers: {
        async *watchAccounts(_request, { signal }) {
          yield WatchAccountsResponse.fromPartial({ resumeToken: "1" });
          await sleep(20_000, undefined, { signal }).finally(() => {
            aborted = signal.aborted;
          });
        },
      },
    });
    const watch = gateway.watchAccounts(bound as never, within(30_000))[Symbol.asyncIterator]();
    await watch.next();
    const startMs = performance.now();
    await server.drain(1000);
    expect(performance.now() - startMs).toBeLessThan(1500);
    expect(aborted).toBe(true);
    expect(await failure(watch.next())).toMatchObject({ code: "UNAVAILABLE", reason: "STOPPING" });
  });

  test("does not wait for those who watch the health", async () => {
    const { server } = await startTestServer({ definition });
    const { ca } = await testTls("gateway");
    const watcher = new grpc.Client(`127.0.0.1:${server.publicPort}`, grpc.credentials.createSsl(Buffer.from(ca)), {
      "grpc.ssl_target_name_override": "localhost",
    });
    atEnd(() => watcher.close());
    const same = (bytes: Buffer) => bytes;
    const path = "/grpc.health.v1.Health/Watch";
    const watch = watcher.makeServerStreamRequest(path, same, same, Buffer.alloc(0), { deadline: Date.now() + 60_000 });
    watch.on("error", () => undefined);
    await once(watch, "data");
    const startMs = performance.now();
    await server.drain(30_000);
    expect(performance.now() - startMs).toBeLessThan(4000);
  });
});
