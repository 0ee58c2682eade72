// How far a stream of answers may run ahead of the socket. That answers come in order is in rpc.test.ts.
import * as grpc from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { writeAhead } from "#libs/write-ahead.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { WatchAccountsResponse } from "#proto/deputy/account/v1/events.ts";
import { failure, startTestServer, within } from "../support/rpc.ts";

type InnerCall = Parameters<typeof writeAhead>[1];
type Method = Parameters<typeof writeAhead>[0];

/** A call whose messages leave when they are told to. */
function openCall(method: Partial<Method>) {
  const leaving: (() => void)[] = [];
  const inner = { sendMetadata() {}, sendMessage: (_: unknown, left: () => void) => leaving.push(left) };
  const call = writeAhead(method as Method, inner as unknown as InnerCall);
  let taken = 0;
  return {
    call,
    inner,
    send: () => call.sendMessage({}, () => taken++),
    leave: () => leaving.shift()?.(),
    waiting: () => leaving.length,
    taken: () => taken,
  };
}

test("hands over messages before the first has left, and of sixteen that have not left waits for one", () => {
  const { send, leave, waiting, taken } = openCall({ responseStream: true });
  for (let message = 0; message < 15; message++) send();
  expect([waiting(), taken()]).toEqual([15, 15]);
  send();
  expect([waiting(), taken()]).toEqual([16, 15]);
  leave();
  expect(taken()).toBe(16);
  send();
  expect(taken()).toBe(16);
  leave();
  expect(taken()).toBe(17);
});

test("leaves a call with one answer as it is", () => {
  const { call, inner } = openCall({ responseStream: false });
  expect(call).toBe(inner);
  expect(call).not.toBeInstanceOf(grpc.ServerInterceptingCall);
});

test("a stream of answers fails at the one that cannot be made bytes, however many come behind it", async () => {
  const broken = {
    ...WatchAccountsResponse.fromPartial({}),
    get resumeToken(): string {
      throw new Error("not to be had");
    },
  };
  const { gateway } = await startTestServer({
    definition: AccountServiceDefinition,
    handlers: {
      async *watchAccounts() {
        yield WatchAccountsResponse.fromPartial({ resumeToken: "1" });
        yield broken;
        for (let more = 0; more < 50; more += 1) yield WatchAccountsResponse.fromPartial({ resumeToken: "more" });
      },
    },
  });
  const request = { projectId: "proj_1", environment: Environment.PRODUCTION } as never;
  expect(await failure(Array.fromAsync(gateway.watchAccounts(request, within(5000))))).toMatchObject({
    code: "INTERNAL",
  });
});
