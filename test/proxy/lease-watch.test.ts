// What the proxy does with what the vault tells it on WatchLeases: nothing is started with a lease that is over, whatever the
// request was waiting for, and what is in flight for a revoked account is broken off.
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import type { ForwardStreamRequest } from "#proto/deputy/proxy/v1/proxy_service.ts";
import { type InjectionLease, LeaseInvalidationReason } from "#proto/deputy/vault/v1/leases.ts";
import { forwardRequest, ok, type ProxyFixture, standInLease, startProxyFixture } from "./proxy-fixture.ts";

const revoked = { code: "FAILED_PRECONDITION", reason: "ACCOUNT_REVOKED" };

let fixture: ProxyFixture;
beforeAll(async () => {
  fixture = await startProxyFixture();
});
afterAll(() => fixture.stop());
beforeEach(() => {
  fixture.reset();
  // A new connection for each request, so that a test can hold it.
  fixture.upstream.answerWith(ok("{}", "connection: close\r\n"));
});

function forward() {
  const answer = fixture.gateway.forward(forwardRequest(), { token: fixture.token, deadlineMs: Date.now() + 20_000 });
  answer.catch(() => undefined);
  return answer;
}

async function until(condition: () => boolean): Promise<void> {
  const giveUpMs = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > giveUpMs) throw new Error("did not come true in time");
    await sleep(5);
  }
}

/** The stand-in's lease with another token. */
function renewedLease(): InjectionLease {
  const headers = [{ name: "Authorization", value: "Bearer renewed-token" }];
  return standInLease(fixture.upstream.port, { headers, generation: 2n });
}

function gate() {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { promise, open: resolve };
}

test("names its process to the vault, on the stream and with each lease", async () => {
  await forward();
  expect(fixture.leases[0]?.proxyId).toBe("prx_1");
  expect(fixture.serving).toEqual([true]);
});

test("does not start a request that waited for its connection while its account was revoked", async () => {
  const connection = gate();
  fixture.watch.connecting = connection.promise;
  const waiting = forward();
  await until(() => fixture.leases.length === 1);
  await sleep(50);
  await fixture.watch.invalidate("apn_1");
  connection.open();
  await expect(waiting).rejects.toMatchObject(revoked);
  await sleep(100);
  expect(fixture.upstream.requests).toEqual([]);
});

test("does not use a lease that was on its way when the account was revoked", async () => {
  const lease = gate();
  fixture.watch.leasing = lease.promise;
  const waiting = forward();
  await until(() => fixture.leases.length === 1);
  await fixture.watch.invalidate("apn_1");
  lease.open();
  await expect(waiting).rejects.toMatchObject(revoked);
  expect(fixture.upstream.requests).toEqual([]);
});

test("breaks off what is in flight for a revoked account, and nothing else", async () => {
  fixture.upstream.answerWith(() => undefined);
  const waiting = forward();
  await until(() => fixture.upstream.requests.length === 1);
  await fixture.watch.invalidate("apn_2");
  await fixture.watch.invalidate("apn_1", LeaseInvalidationReason.RECONNECTED);
  expect(fixture.upstream.sockets.size).toBe(1);
  await fixture.watch.invalidate("apn_1");
  await expect(waiting).rejects.toMatchObject(revoked);
  await until(() => fixture.upstream.sockets.size === 0);
});

test("asks for another lease when the account was connected anew before the request was sent", async () => {
  const connection = gate();
  fixture.watch.connecting = connection.promise;
  const waiting = forward();
  await until(() => fixture.leases.length === 1);
  await sleep(50);
  await fixture.watch.invalidate("apn_1", LeaseInvalidationReason.RECONNECTED);
  connection.open();
  expect((await waiting).status).toBe(200);
  expect(fixture.leases).toHaveLength(2);
  expect(fixture.upstream.requests).toHaveLength(1);
});

test("does not break off what is in flight when the account is refreshed", async () => {
  let answer: ((text: string) => void) | undefined;
  fixture.upstream.answerWith((socket) => {
    answer = (text) => void socket.write(text);
  });
  const waiting = forward();
  await until(() => answer !== undefined);
  await fixture.watch.invalidate("apn_1", LeaseInvalidationReason.REFRESHED);
  await fixture.watch.invalidate("apn_1", LeaseInvalidationReason.REFRESHED, renewedLease());
  answer?.(ok("{}", "connection: close\r\n"));
  expect((await waiting).status).toBe(200);
  expect(fixture.leases).toHaveLength(1);
});

test("sends with the new token when the account is refreshed while its lease is on its way", async () => {
  const lease = gate();
  fixture.watch.leasing = lease.promise;
  const waiting = forward();
  await until(() => fixture.leases.length === 1);
  await fixture.watch.invalidate("apn_1", LeaseInvalidationReason.REFRESHED, renewedLease());
  lease.open();
  expect((await waiting).status).toBe(200);
  expect(fixture.leases).toHaveLength(1);
  expect(fixture.upstream.requests[0]).toContain("Bearer renewed-token");
});

test("sends no request that was made with the old token and had not begun when the account was refreshed", async () => {
  const connection = gate();
  fixture.watch.connecting = connection.promise;
  const waiting = forward();
  await until(() => fixture.leases.length === 1);
  await sleep(50);
  await fixture.watch.invalidate("apn_1", LeaseInvalidationReason.REFRESHED, renewedLease());
  connection.open();
  expect((await waiting).status).toBe(200);
  // The new token came with the word of the refresh.
  expect(fixture.leases).toHaveLength(1);
  expect(fixture.upstream.requests[0]).toContain("Bearer renewed-token");
  expect(fixture.upstream.requests).toHaveLength(1);
});

test("begins a streamed body anew, whole, when the account is refreshed before its first byte has left", async () => {
  const connection = gate();
  fixture.watch.connecting = connection.promise;
  fixture.upstream.answerWith((socket) => {
    if (fixture.upstream.requests.join("").endsWith("0\r\n\r\n")) socket.write(ok("{}", "connection: close\r\n"));
  });
  async function* pieces() {
    yield { piece: { $case: "head", value: forwardRequest({ method: "POST" }) } } as ForwardStreamRequest;
    for (const text of ["one", "two"]) yield { piece: { $case: "chunk" as const, value: Buffer.from(text) } };
  }
  const heads: unknown[] = [];
  const reading = (async () => {
    const options = { token: fixture.token, deadlineMs: Date.now() + 10_000 };
    for await (const { piece } of fixture.gateway.forwardStream(pieces(), options)) {
      if (piece?.$case === "head") heads.push(piece.value);
    }
  })();
  await until(() => fixture.leases.length === 1);
  await sleep(50);
  await fixture.watch.invalidate("apn_1", LeaseInvalidationReason.REFRESHED, renewedLease());
  connection.open();
  await reading;
  expect(heads).toMatchObject([{ status: 200, attempts: 1 }]);
  const sent = fixture.upstream.requests.join("");
  expect(sent).toContain("Bearer renewed-token");
  expect(sent).toMatch(/\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n$/);
});

test("asks for another lease when its time has passed before the request was sent", async () => {
  const connection = gate();
  fixture.watch.connecting = connection.promise;
  fixture.answers = { account: {}, lease: { leaseDurationMs: 200 } };
  const waiting = forward();
  await until(() => fixture.leases.length === 1);
  await sleep(250);
  fixture.answers = { account: {}, lease: {} };
  connection.open();
  expect((await waiting).status).toBe(200);
  expect(fixture.leases).toHaveLength(2);
  expect(fixture.upstream.requests).toHaveLength(1);
});

test("does not start what waits when the stream breaks, and goes on with a new lease when it is back", async () => {
  const connection = gate();
  fixture.watch.connecting = connection.promise;
  const waiting = forward();
  await until(() => fixture.leases.length === 1);
  await sleep(50);
  const { opened } = fixture.watch;
  fixture.serving.length = 0;
  fixture.watch.cut();
  await until(() => fixture.serving.length === 2);
  expect(fixture.serving).toEqual([false, true]);
  expect(fixture.watch.opened).toBe(opened + 1);
  connection.open();
  expect((await waiting).status).toBe(200);
  expect(fixture.leases).toHaveLength(2);
});

test("takes a silent vault for one that is gone: says NOT_SERVING, answers VAULT_UNREACHABLE, and recovers", async () => {
  fixture.serving.length = 0;
  fixture.watch.talking = false;
  await until(() => fixture.serving.length === 1);
  expect(fixture.serving).toEqual([false]);
  await expect(forward()).rejects.toMatchObject({ code: "UNAVAILABLE", reason: "VAULT_UNREACHABLE" });
  expect(fixture.leases).toEqual([]);
  fixture.watch.talking = true;
  expect((await forward()).status).toBe(200);
});
