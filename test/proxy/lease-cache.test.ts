// What a lease in hand saves, and what it must not change: by the cache alone with clocks in the test's hand, then by a proxy.
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { type LeaseKey, leaseCache } from "../../services/proxy/lease-cache.ts";
import { leaseHolds } from "../../services/proxy/lease-holds.ts";
import { signToken } from "../support/stand-in-service.ts";
import { forwardRequest, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

const key: LeaseKey = {
  projectId: "proj_1",
  environment: 1,
  externalUserId: "user-1",
  accountId: "apn_1",
  actor: { memberId: "mem_1", role: "member" },
};
const revoked = { code: "FAILED_PRECONDITION", reason: "ACCOUNT_REVOKED" };
const tokenExpired = new StatusError("UNAUTHENTICATED", "TOKEN_EXPIRED", "The access token has expired.");

interface NamedLease {
  readonly name: string;
  readonly leaseDurationMs: number;
  readonly generation: bigint;
}

function newCache(maxEntries?: number) {
  let nowMs = 1_000_000;
  const holds = leaseHolds<NamedLease>({ monotonicMs: () => nowMs, wallMs: () => nowMs });
  holds.heard();
  let held = 0;
  const counted: Pick<typeof holds, "take"> = {
    async take(account, deadlineMs) {
      const hold = await holds.take(account, deadlineMs);
      held += 1;
      return {
        ...hold,
        end() {
          held -= 1;
          hold.end();
        },
      };
    },
  };
  const cache = leaseCache<NamedLease>(counted, () => nowMs, maxEntries);
  const asked: string[] = [];
  const borrow = (name: string, change: Partial<LeaseKey> = {}, leaseDurationMs = 9_000) =>
    cache.borrow({ ...key, ...change }, { deadlineMs: Date.now() + 5_000 }, async () => {
      asked.push(name);
      return { name, leaseDurationMs, generation: 1n };
    });
  return {
    cache,
    holds,
    asked,
    borrow,
    held: () => held,
    /** Time goes by, with the vault's heartbeats in it. */
    pass(ms: number) {
      for (let leftMs = ms; leftMs > 0; leftMs -= 1_000) {
        nowMs += Math.min(leftMs, 1_000);
        holds.heard();
      }
    },
  };
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

describe("the cache", () => {
  test("gives one lease to all who ask with the same right, and says who waited for it", async () => {
    const { borrow, asked } = newCache();
    expect(await borrow("a")).toMatchObject({ lease: { name: "a" }, isNew: true });
    expect(await borrow("b")).toMatchObject({ lease: { name: "a" }, isNew: false });
    expect(asked).toEqual(["a"]);
  });

  test.each<[string, Partial<LeaseKey>]>([
    ["project", { projectId: "proj_2" }],
    ["environment", { environment: 2 }],
    ["user", { externalUserId: "user-2" }],
    ["account", { accountId: "apn_2" }],
    ["member", { actor: { memberId: "mem_2", role: "member" } }],
    ["role of the same member", { actor: { memberId: "mem_1", role: "owner" } }],
    ["caller who acts for no member", { actor: undefined }],
  ])("does not give it to another %s", async (_name, change) => {
    const { borrow } = newCache();
    await borrow("a");
    expect(await borrow("b", change)).toMatchObject({ lease: { name: "b" } });
  });

  test("asks once for a hundred at once, and goes on when the one whose question it is leaves", async () => {
    const { cache } = newCache();
    let asked = 0;
    const answer = Promise.withResolvers<NamedLease>();
    const leaving = new AbortController();
    const ask = () => {
      asked += 1;
      return answer.promise;
    };
    const patience = { deadlineMs: Date.now() + 5_000 };
    const first = cache.borrow(key, { ...patience, signal: leaving.signal }, ask);
    const others = Array.from({ length: 99 }, () => cache.borrow(key, patience, ask));
    leaving.abort();
    await expect(first).rejects.toMatchObject({ code: "CANCELLED" });
    answer.resolve({ name: "a", leaseDurationMs: 9_000, generation: 1n });
    expect(new Set((await Promise.all(others)).map(({ lease }) => lease.name))).toEqual(new Set(["a"]));
    expect(asked).toBe(1);
  });

  test("lets each who waits go at its own deadline", async () => {
    const { cache } = newCache();
    const waiting = cache.borrow(key, { deadlineMs: Date.now() + 50 }, () => new Promise(() => undefined));
    await expect(waiting).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
  });

  test("renews for a request in the last third of the lease, which does not wait", async () => {
    const { borrow, asked, pass } = newCache();
    await borrow("a");
    pass(5_900);
    await borrow("early");
    pass(200);
    expect(await borrow("b")).toMatchObject({ lease: { name: "a" }, isNew: false });
    await settled();
    expect(await borrow("c")).toMatchObject({ lease: { name: "b" }, isNew: false });
    expect(asked).toEqual(["a", "b"]);
  });

  test("keeps a lease to its end when the renewal fails, and tries no second one", async () => {
    const { cache, borrow, pass } = newCache();
    await borrow("a");
    pass(7_000);
    let refused = 0;
    const patience = { deadlineMs: Date.now() + 5_000 };
    for (let i = 0; i < 10; i += 1) {
      const { lease } = await cache.borrow(key, patience, async () => {
        refused += 1;
        throw new StatusError("UNAVAILABLE", "VAULT_UNREACHABLE", "Away.");
      });
      expect(lease.name).toBe("a");
      await settled();
    }
    expect(refused).toBe(1);
    pass(2_000);
    expect(await borrow("b")).toMatchObject({ lease: { name: "b" }, isNew: true });
  });

  test.each<[string, (made: ReturnType<typeof newCache>) => void]>([
    ["its time is over", ({ pass }) => pass(9_000)],
    [
      "the watch is lost",
      ({ holds }) => {
        holds.lost();
        holds.heard();
      },
    ],
    ["the account changed", ({ holds }) => holds.invalidate(key, { kind: "over" })],
    ["the account is revoked", ({ holds }) => holds.invalidate(key, { kind: "revoked" })],
  ])("gives no lease when %s", async (_name, end) => {
    const made = newCache();
    await made.borrow("a");
    end(made);
    expect(await made.borrow("b")).toMatchObject({ lease: { name: "b" }, isNew: true });
  });

  test("gives nobody what was on its way when the account was revoked", async () => {
    const { cache, holds } = newCache();
    const answer = Promise.withResolvers<NamedLease>();
    const patience = { deadlineMs: Date.now() + 5_000 };
    const waiting = [1, 2].map(() => cache.borrow(key, patience, () => answer.promise));
    await settled();
    holds.invalidate(key, { kind: "revoked" });
    answer.resolve({ name: "a", leaseDurationMs: 9_000, generation: 1n });
    for (const one of waiting) expect((await one).hold.fault()).toMatchObject(revoked);
  });

  test("does not keep a refusal", async () => {
    const { cache, borrow } = newCache();
    const absent = new StatusError("NOT_FOUND", "ACCOUNT_NOT_FOUND", "There is no such account.");
    const refused = cache.borrow(key, { deadlineMs: Date.now() + 5_000 }, () => Promise.reject(absent));
    await expect(refused).rejects.toBe(absent);
    expect(await borrow("b")).toMatchObject({ lease: { name: "b" } });
  });

  test("does not let a caller suffer from another one's token", async () => {
    const { cache, borrow } = newCache();
    const first = cache.borrow(key, { deadlineMs: Date.now() + 5_000 }, () => Promise.reject(tokenExpired));
    const second = borrow("b");
    await expect(first).rejects.toBe(tokenExpired);
    expect(await second).toMatchObject({ lease: { name: "b" } });
  });

  test("keeps a bounded number, those that were used last", async () => {
    const { borrow, asked } = newCache(2);
    for (const accountId of ["apn_1", "apn_2", "apn_1", "apn_3"]) await borrow(accountId, { accountId });
    await borrow("again", { accountId: "apn_1" });
    await borrow("anew", { accountId: "apn_2" });
    expect(asked).toEqual(["apn_1", "apn_2", "apn_3", "anew"]);
  });

  test("can still break off what is in flight with a lease that had to make room", async () => {
    const { borrow, holds, held } = newCache(1);
    const inFlight = await borrow("a");
    const other = await borrow("b", { accountId: "apn_2" });
    holds.invalidate(key, { kind: "revoked" });
    expect(inFlight.hold.signal.aborted).toBe(true);
    expect(other.hold.signal.aborted).toBe(false);
    expect(held()).toBe(2);
    inFlight.giveBack();
    expect(held()).toBe(1);
  });

  test("holds nothing that is neither in hand nor in flight", async () => {
    const { borrow, held } = newCache();
    for (let i = 0; i < 3; i += 1) (await borrow("a", {}, 20)).giveBack();
    expect(held()).toBe(1);
    await expect.poll(held, { timeout: 2_000 }).toBe(0);
  });
});

describe("a proxy", () => {
  let fixture: ProxyFixture;
  beforeAll(async () => {
    fixture = await startProxyFixture();
  });
  afterAll(() => fixture.stop());
  beforeEach(() => fixture.reset());

  const forward = (token = fixture.token) =>
    fixture.gateway.forward(forwardRequest(), { token, deadlineMs: Date.now() + 20_000 });

  test("asks the vault and the account service once for a hundred requests, one after the other or all at once", async () => {
    for (let i = 0; i < 50; i += 1) await forward();
    await Promise.all(Array.from({ length: 50 }, () => forward()));
    expect(fixture.upstream.requests).toHaveLength(100);
    expect(fixture.leases).toHaveLength(1);
    expect(fixture.accountReads).toHaveLength(1);
    fixture.reset();
    await Promise.all(Array.from({ length: 100 }, () => forward()));
    expect(fixture.leases).toHaveLength(1);
    expect(fixture.accountReads).toHaveLength(1);
  });

  test("judges each caller's own right, though the lease is in hand", async () => {
    await forward();
    const claims = { sub: "cli_2", project_id: "proj_1", scope: "connect:proxy" };
    const cases = [
      [{ ...claims, scope: "connect:accounts:read" }, "SCOPE_MISSING"],
      [{ ...claims, project_id: "proj_2" }, "PROJECT_NOT_FOUND"],
      [{ ...claims, environment: 2 }, "ENVIRONMENT_NOT_FOUND"],
      [{ ...claims, external_user_id: "user-2" }, "USER_NOT_FOUND"],
    ] as const;
    for (const [wrong, reason] of cases)
      await expect(forward(await signToken(wrong))).rejects.toMatchObject({ reason });
    await expect(forward(await signToken(claims, -10))).rejects.toMatchObject({ reason: "TOKEN_EXPIRED" });
    expect(fixture.upstream.requests).toHaveLength(1);
    await forward(await signToken(claims));
    expect(fixture.leases).toHaveLength(1);
  });

  test("renews the leases of many callers in one call, each by its own right, while their requests go on", async () => {
    fixture.answers = { account: {}, lease: { leaseDurationMs: 3_000 } };
    const tokens = [fixture.token, await signToken({ sub: "cli_2", project_id: "proj_1", scope: "connect:proxy" })];
    const asMembers = await Promise.all(
      ["mem_1", "mem_2", "mem_3"].map((member_id) =>
        signToken({
          sub: member_id,
          project_id: "proj_1",
          scope: "connect:proxy",
          actor: { member_id, role: "member" },
        }),
      ),
    );
    const round = () => Promise.all([...tokens, ...asMembers].map((token) => forward(token)));
    const endMs = performance.now() + 4_500;
    while (performance.now() < endMs) await round();
    // One lease for the project's own callers, and one for each member.
    expect(fixture.leases).toHaveLength(4);
    expect(fixture.renewals.length).toBeGreaterThan(0);
    expect(fixture.renewals.length).toBeLessThan(4);
    expect(fixture.renewals[0]).toHaveLength(4);
    const renewedBy = new Set(fixture.renewals[0]?.map(({ accessToken }) => accessToken));
    for (const token of asMembers) expect(renewedBy).toContain(token);
  });

  test("says of a refresh to those alone who waited for it", async () => {
    fixture.answers = { account: {}, lease: { refreshed: true } };
    expect(await forward()).toMatchObject({ refreshed: true });
    expect(await forward()).toMatchObject({ refreshed: false });
  });

  test("starts nothing after it has acknowledged that the account is revoked", async () => {
    await forward();
    // Without the word to the proxy that setting `answers` gives.
    Object.assign(fixture.answers, { account: { state: 2 } });
    await fixture.watch.invalidate("apn_1");
    await expect(forward()).rejects.toMatchObject(revoked);
    expect(fixture.upstream.requests).toHaveLength(1);
  });

  test("asks anew when the stream to the vault was lost", async () => {
    await forward();
    const { opened } = fixture.watch;
    fixture.watch.cut();
    await expect.poll(() => fixture.watch.opened, { timeout: 5_000 }).toBe(opened + 1);
    await forward();
    expect(fixture.leases).toHaveLength(2);
  });
});
