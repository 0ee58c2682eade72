// The gRPC adapter between a true server and true clients over mutual TLS: calls of each shape, what travels with them, and
// how errors come back.
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { invalidField, StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { WatchAccountsResponse } from "#proto/deputy/account/v1/events.ts";
import { ForwardResponse, ProxyServiceDefinition } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { atEnd, failure, startTestServer, within } from "../support/rpc.ts";
import { testTls } from "../support/tls.ts";

const definition = ProxyServiceDefinition;
const request = {
  projectId: "proj_1",
  environment: Environment.DEVELOPMENT,
  externalUserId: "ann",
  accountId: "apn_1",
  method: "GET",
  url: "/me",
};
const answer = (more: Partial<ForwardResponse>) => ForwardResponse.fromPartial(more);
const piece = (bytes: number) => ({ piece: { $case: "chunk" as const, value: Buffer.alloc(bytes, 1) } });

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

/** Takes messages one by one, and in a loop later on. */
function iterator<T>(items: AsyncIterable<T>): AsyncIterableIterator<T> {
  return items as AsyncIterableIterator<T>;
}

async function* nothing(): AsyncGenerator<never> {
  yield* [];
}

async function until(condition: () => boolean): Promise<void> {
  for (let left = 500; !condition() && left > 0; left -= 1) await sleep(10);
  expect(condition()).toBe(true);
}

describe("a call", () => {
  test("with one answer carries request and response", async () => {
    const { gateway } = await startTestServer({
      definition,
      handlers: {
        forward: async ({ url, body }) => answer({ status: 201, body: Buffer.concat([Buffer.from(url), body]) }),
      },
    });
    const response = await gateway.forward({ ...request, body: Buffer.from("!") }, within(5000));
    expect(response).toMatchObject({ status: 201, attempts: 0 });
    expect(response.body.toString()).toBe("/me!");
  });

  test("with a stream of answers gives them in order", async () => {
    const { gateway } = await startTestServer({
      definition: AccountServiceDefinition,
      handlers: {
        async *watchAccounts() {
          for (const resumeToken of ["1", "2", "3"]) yield WatchAccountsResponse.fromPartial({ resumeToken });
        },
      },
    });
    const watch = gateway.watchAccounts(
      { projectId: "proj_1", environment: Environment.PRODUCTION } as never,
      within(5000),
    );
    expect((await all(watch)).map(({ resumeToken }) => resumeToken)).toEqual(["1", "2", "3"]);
  });

  test("with streams both ways holds the sender back until the handler reads", async () => {
    const warnings: Error[] = [];
    const warn = (warning: Error) => warnings.push(warning);
    process.on("warning", warn);
    let release = () => {};
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    const { gateway } = await startTestServer({
      definition,
      unvalidated: ["forwardStream"],
      handlers: {
        async *forwardStream(pieces) {
          await released;
          let bytes = 0;
          for await (const item of pieces) bytes += item.piece?.$case === "chunk" ? item.piece.value.length : 0;
          yield { piece: { $case: "head", value: answer({ status: bytes / 65_536 }) } };
        },
      },
    });
    let sent = 0;
    async function* chunks() {
      for (; sent < 1000; sent += 1) yield piece(65_536);
    }
    const answers = all(gateway.forwardStream(chunks(), within(20_000)));
    await sleep(300);
    const held = sent;
    await sleep(200);
    expect(sent).toBe(held);
    expect(sent).toBeLessThan(500);
    release();
    expect((await answers)[0]?.piece).toMatchObject({ value: { status: 1000 } });
    process.off("warning", warn);
    expect(warnings).toEqual([]);
  });

  test("with streams both ways holds the handler back until the caller reads", async () => {
    let sent = 0;
    const { gateway } = await startTestServer({
      definition,
      handlers: {
        async *forwardStream() {
          for (; sent < 1000; sent += 1) yield piece(65_536);
        },
      },
    });
    const answers = iterator(gateway.forwardStream(nothing(), within(20_000)));
    await answers.next();
    await sleep(300);
    const held = sent;
    await sleep(200);
    expect(sent).toBe(held);
    expect(sent).toBeLessThan(500);
    expect(await all(answers)).toHaveLength(999);
  });

  test("that the handler ends early stops the sender, even when nobody reads the answers yet", async () => {
    const { gateway } = await startTestServer({
      definition,
      handlers: {
        async *forwardStream(pieces) {
          for await (const _ of pieces) break;
          yield piece(1);
          throw new StatusError("PERMISSION_DENIED", "NO", "No.");
        },
      },
    });
    let returned = false;
    async function* chunks() {
      try {
        for (;;) yield piece(65_536);
      } finally {
        returned = true;
      }
    }
    const answers = gateway.forwardStream(chunks(), within(5000));
    await until(() => returned);
    expect(await failure(all(answers))).toMatchObject({ reason: "NO" });
  });

  test("without a handler of its own is answered UNIMPLEMENTED", async () => {
    const { gateway } = await startTestServer({ definition });
    expect(await failure(gateway.forward(request, within(5000)))).toMatchObject({ code: "UNIMPLEMENTED" });
  });
});

describe("an error", () => {
  test("crosses with code, reason, message, metadata and violations", async () => {
    const violations = [{ field: "url", description: "is no URL" }];
    const { gateway } = await startTestServer({
      definition,
      handlers: {
        forward: async () => {
          throw new StatusError("NOT_FOUND", "GONE", "It is gone.", { violations, metadata: { rule: "r1" } });
        },
      },
    });
    expect(await failure(gateway.forward(request, within(5000)))).toMatchObject({
      code: "NOT_FOUND",
      reason: "GONE",
      message: "It is gone.",
      metadata: { rule: "r1" },
    });
    const error = await failure(gateway.forward(request, within(5000)));
    expect(error.violations).toEqual(violations);
  });

  test("that nobody foresaw becomes INTERNAL without its text, and is logged with its cause", async () => {
    const { gateway, lines } = await startTestServer({
      definition,
      handlers: {
        forward: async () => {
          throw new Error("relation accounts does not exist", { cause: new Error("at the bottom") });
        },
      },
    });
    const error = await failure(gateway.forward(request, { ...within(5000), requestId: "request-1" }));
    expect(error).toMatchObject({ code: "INTERNAL", reason: "INTERNAL", message: "Internal error." });
    expect(lines).toMatchObject([
      {
        level: "error",
        requestId: "request-1",
        status: "INTERNAL",
        caller: "gateway",
        err: { message: "relation accounts does not exist", cause: { message: "at the bottom" } },
      },
    ]);
  });

  test("in a stream is not lost when reading begins after it", async () => {
    const { gateway } = await startTestServer({
      definition,
      handlers: {
        async *forwardStream() {
          yield piece(1);
          throw new StatusError("ABORTED", "TORN", "Torn.");
        },
      },
    });
    const answers = iterator(gateway.forwardStream(nothing(), within(5000)));
    await sleep(200);
    // gRPC may drop what was not read before a failure, never the failure.
    expect(await failure(all(answers))).toMatchObject({ code: "ABORTED", reason: "TORN" });
  });

  test("of the connection does not name the inner address", async () => {
    const { gateway, server } = await startTestServer({ definition });
    await server.drain(0);
    const error = await failure(gateway.forward(request, within(1000)));
    expect(error.code).toBe("UNAVAILABLE");
    expect(error.message).not.toContain("127.0.0.1");
    expect(String((error.cause as Error).message)).toContain("UNAVAILABLE");
  });

  test("of the contract's rules names the field", async () => {
    const { gateway } = await startTestServer({ definition: AccountServiceDefinition });
    const scoped = { projectId: "proj_1", environment: Environment.DEVELOPMENT };
    const error = await failure(
      gateway.createConnectToken({ ...scoped, externalUserId: "x".repeat(251) } as never, within(5000)),
    );
    expect(error).toMatchObject({ code: "INVALID_ARGUMENT", reason: "INVALID_FIELD" });
    expect(error.violations[0]?.field).toBe("external_user_id");
  });

  test("of a text that is not UTF-8 is the caller's, not an internal one", async () => {
    const notUtf8 = { encode: () => ({ finish: () => Buffer.from([0x0a, 0x02, 0xc3, 0x28]) }) };
    const { listApps } = AccountServiceDefinition.methods;
    const wrong = { ...listApps, requestType: { ...listApps.requestType, ...notUtf8 } };
    const { server } = await startTestServer({
      definition: AccountServiceDefinition,
      handlers: { listApps: async () => ({ apps: [], nextPageToken: "", totalSize: 0 }) },
    });
    const client = createClient(
      { ...AccountServiceDefinition, methods: { listApps: wrong } },
      { address: `127.0.0.1:${server.internalPort}`, tls: await testTls("gateway"), service: "proxy" },
    );
    atEnd(() => client.close());
    expect(await failure(client.listApps({}, within(5000)))).toMatchObject({
      code: "INVALID_ARGUMENT",
      reason: "REQUEST_MALFORMED",
    });
  });

  test("of a token that cannot be sent does not quote it", async () => {
    const { gateway } = await startTestServer({ definition });
    const error = await failure((async () => gateway.forward(request, { ...within(5000), token: "s3cret\n" }))());
    expect(error).toMatchObject({ code: "UNAUTHENTICATED", reason: "TOKEN_INVALID" });
    expect(`${error.stack} ${error.cause}`).not.toContain("s3cret");
  });

  test("whose text holds half a character crosses all the same", async () => {
    const refuse = async () => {
      throw new StatusError("FAILED_PRECONDITION", "REFUSED", "The provider says \ud800.");
    };
    const { gateway } = await startTestServer({ definition, handlers: { forward: refuse } });
    expect(await failure(gateway.forward(request, within(2000)))).toMatchObject({
      reason: "REFUSED",
      message: "The provider says \ufffd.",
    });
  });

  test("of one field names it", () => {
    expect(invalidField("url", "is no URL")).toMatchObject({
      message: "url: is no URL",
      violations: [{ field: "url" }],
    });
  });
});

describe("what travels along", () => {
  async function seen(options: Parameters<Awaited<ReturnType<typeof startTestServer>>["gateway"][string]>[1]) {
    const calls: (Call & { remainingMs: number })[] = [];
    const { gateway } = await startTestServer({
      definition,
      handlers: {
        forward: async (_request, call) => {
          calls.push({ ...call, remainingMs: call.deadlineMs - Date.now() });
          return answer({});
        },
      },
    });
    await gateway.forward(request, options);
    return calls[0] as (typeof calls)[number];
  }

  test("is the deadline, a little shorter", async () => {
    // gRPC sends a time-out, not a point in time: what the way took is given back, so the time that is left is compared.
    const { remainingMs } = await seen(within(5000));
    expect(remainingMs).toBeLessThanOrEqual(4982);
    expect(remainingMs).toBeGreaterThan(4000);
  });

  test("is a sound request id; another is replaced", async () => {
    expect((await seen({ ...within(5000), requestId: "request-1" })).requestId).toBe("request-1");
    expect((await seen({ ...within(5000), requestId: "not a sound id" })).requestId).toMatch(/^[0-9a-f-]{36}$/);
    expect((await seen(within(5000))).requestId).toMatch(/^[0-9a-f-]{36}$/);
  });

  test("is always a deadline: a call without one is refused", async () => {
    const { gateway } = await startTestServer({ definition, handlers: { forward: async () => answer({}) } });
    const error = await failure(gateway.forward(request, { deadlineMs: Number.POSITIVE_INFINITY }));
    expect(error).toMatchObject({ code: "INVALID_ARGUMENT", reason: "DEADLINE_REQUIRED" });
  });

  test("ends the call when the deadline passes, and aborts the handler's signal", async () => {
    let aborted = false;
    const { gateway } = await startTestServer({
      definition,
      handlers: {
        forward: async (_request, { signal }) => {
          await sleep(5000, undefined, { signal }).catch(() => {
            aborted = true;
          });
          return answer({});
        },
      },
    });
    expect(await failure(gateway.forward(request, within(200)))).toMatchObject({ code: "DEADLINE_EXCEEDED" });
    await until(() => aborted);
  });

  test.each(["forward", "forwardStream"] as const)("is the caller's leaving, to the handler of %s", async (method) => {
    let aborted = false;
    const leave = new AbortController();
    const wait = async ({ signal }: Call) => {
      setTimeout(() => leave.abort(), 50);
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
      aborted = true;
      return answer({});
    };
    const { gateway, lines } = await startTestServer({
      definition,
      handlers: {
        forward: (_request, call) => wait(call),
        async *forwardStream(_pieces, call) {
          yield piece(1);
          await wait(call);
          yield piece(1);
        },
      },
    });
    const options = { ...within(5000), signal: leave.signal };
    const result =
      method === "forward" ? gateway.forward(request, options) : all(gateway.forwardStream(nothing(), options));
    expect(await failure(result)).toMatchObject({ code: "CANCELLED" });
    await until(() => aborted && lines.length === 1);
    if (method === "forwardStream") expect(lines[0]).toMatchObject({ status: "CANCELLED" });
  });

  test("is the end of a reader that stops halfway", async () => {
    let aborted = false;
    const { gateway } = await startTestServer({
      definition,
      handlers: {
        async *forwardStream(_pieces, { signal }) {
          signal.addEventListener("abort", () => {
            aborted = true;
          });
          for (;;) yield piece(1000);
        },
      },
    });
    for await (const _ of gateway.forwardStream(nothing(), within(20_000))) break;
    await until(() => aborted);
  });
});
