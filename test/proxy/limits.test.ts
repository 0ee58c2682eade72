// Limits of the proxy: the same rules with counts in memory, in a true Postgres and in a true Redis.
import { afterAll, describe, expect, test, vi } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";
import { readProjectLimits } from "../../services/proxy/limit-settings.ts";
import { type LimitStore, openLimitStore } from "../../services/proxy/limit-store.ts";
import { type LimitRules, startLimits } from "../../services/proxy/limits.ts";
import { createTestDatabase } from "../support/postgres.ts";
import { redisMissing, startRedis } from "../support/redis.ts";
import { forwardRequest, ok, startProxyFixture } from "./proxy-fixture.ts";

const log = createLogger("proxy", "silent");
const database = await createTestDatabase("vault");
const ends: (() => unknown)[] = [];
afterAll(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});

const generous: LimitRules = {
  windowMs: 60_000,
  projectRequests: 1000,
  requestsOfProjects: new Map(),
  accountRequests: 0,
  projectInFlight: 1000,
  accountInFlight: 1000,
};
const request = { projectId: "proj_1", environment: 1, accountId: "apn_1" };

async function open(url = "", password = ""): Promise<LimitStore> {
  const store = await openLimitStore({ url, password, log });
  ends.push(() => store.close());
  return store;
}

async function limitsWith(change: Partial<LimitRules>) {
  return startLimits({ ...generous, ...change }, await open(), Date.now);
}

async function refusal(work: Promise<unknown>): Promise<StatusError> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof StatusError)) throw new Error("was let in");
  return error;
}

const stores: Record<string, () => Promise<{ url: string; password: string }>> = {
  memory: async () => ({ url: "", password: "" }),
  postgres: async () => database.owner,
  redis: async () => {
    const redis = await startRedis();
    ends.push(() => redis.stop());
    return redis;
  },
};

describe.each(Object.entries(stores))("with counts in %s", (name, place) => {
  const missing = name === "redis" ? redisMissing() : undefined;
  let at: ReturnType<typeof place> | undefined;
  const start = async (change: Partial<LimitRules>) => {
    at ??= place();
    const { url, password } = await at;
    return startLimits({ ...generous, ...change }, await open(url, password), Date.now);
  };

  test.skipIf(missing)("refuses what goes beyond a project's limit, and says when to come again", async () => {
    const limits = await start({ projectRequests: 3 });
    const counted = { ...request, projectId: "proj_beyond" };
    for (let count = 0; count < 3; count += 1) (await limits.enter(counted))();
    const { code, reason, metadata } = await refusal(limits.enter(counted));
    expect({ code, reason }).toEqual({ code: "RESOURCE_EXHAUSTED", reason: "RATE_LIMITED" });
    expect(metadata).toMatchObject({ limit: "3" });
    expect(Number(metadata.retry_after_seconds)).toBeGreaterThan(50);
    expect(Number(metadata.retry_after_seconds)).toBeLessThanOrEqual(60);
    expect(Math.abs(Number(metadata.reset_time) - Date.now() / 1000 - 60)).toBeLessThan(10);
  });

  test.skipIf(missing)("counts projects, environments and accounts apart", async () => {
    const limits = await start({ projectRequests: 2, accountRequests: 1 });
    const counted = { ...request, projectId: "proj_apart" };
    await limits.enter(counted);
    expect((await refusal(limits.enter(counted))).metadata.limit).toBe("1");
    expect((await refusal(limits.enter({ ...counted, accountId: "apn_2" }))).metadata.limit).toBe("2");
    await limits.enter({ ...counted, environment: 2, accountId: "apn_3" });
    await limits.enter({ ...counted, projectId: "proj_other", accountId: "apn_1" });
  });

  test.skipIf(missing)("begins anew when the window is over", async () => {
    const limits = await start({ projectRequests: 1, windowMs: 1000 });
    const counted = { ...request, projectId: "proj_anew" };
    await limits.enter(counted);
    await refusal(limits.enter(counted));
    await new Promise((resolve) => setTimeout(resolve, 1_100));
    await limits.enter(counted);
  });

  test.skipIf(missing ?? name === "memory")("shares its counts between processes", async () => {
    const [one, other] = [await start({ projectRequests: 2 }), await start({ projectRequests: 2 })];
    const counted = { ...request, projectId: "proj_shared" };
    await one.enter(counted);
    await other.enter(counted);
    await refusal(one.enter(counted));
    await refusal(other.enter(counted));
  });
});

test("gives a project a limit of its own", async () => {
  const limits = await limitsWith({ projectRequests: 1, requestsOfProjects: readProjectLimits(["proj_1=3"]) });
  for (let count = 0; count < 3; count += 1) await limits.enter(request);
  expect((await refusal(limits.enter(request))).metadata.limit).toBe("3");
  expect(() => readProjectLimits(["proj_1"])).toThrow("DEPUTY_LIMIT_OF_PROJECTS: proj_1 is not like");
});

test("lets only so many requests of an account and of a project be at work", async () => {
  const limits = await limitsWith({ accountInFlight: 2, projectInFlight: 3 });
  const leave = await limits.enter(request);
  await limits.enter(request);
  expect(await refusal(limits.enter(request))).toMatchObject({
    reason: "TOO_MANY_IN_FLIGHT",
    metadata: { limit: "2" },
  });
  const other = { ...request, accountId: "apn_2" };
  await limits.enter(other);
  expect(await refusal(limits.enter({ ...other, accountId: "apn_3" }))).toMatchObject({ metadata: { limit: "3" } });
  await limits.enter({ ...request, environment: 2, accountId: "apn_4" });
  leave();
  await limits.enter(request);
});

test("a refused request is not counted as one at work", async () => {
  const limits = await limitsWith({ projectRequests: 1, accountInFlight: 1, projectInFlight: 2 });
  const leave = await limits.enter(request);
  expect((await refusal(limits.enter(request))).reason).toBe("TOO_MANY_IN_FLIGHT");
  leave();
  for (let count = 0; count < 5; count += 1) {
    expect((await refusal(limits.enter(request))).reason).toBe("RATE_LIMITED");
  }
});

test.skipIf(redisMissing())("counts for itself while the shared store is away", async () => {
  const redis = await startRedis();
  const limits = startLimits({ ...generous, projectRequests: 2 }, await open(redis.url, redis.password), Date.now);
  await limits.enter(request);
  await redis.stop();
  await limits.enter(request);
  await limits.enter(request);
  expect((await refusal(limits.enter(request))).reason).toBe("RATE_LIMITED");
});

test("refuses a store that it does not know", async () => {
  await expect(openLimitStore({ url: "mysql://x", password: "", log })).rejects.toThrow(/^DEPUTY_LIMIT_STORE_URL: is /);
});

test("a throttled call is RESOURCE_EXHAUSTED, and nothing reaches the account service, the vault or the upstream", async () => {
  const fixture = await startProxyFixture({ projectRequests: 1 });
  ends.push(() => fixture.stop());
  fixture.reset();
  const forward = () =>
    fixture.gateway.forward(forwardRequest(), { token: fixture.token, deadlineMs: Date.now() + 10_000 });
  await forward();
  const error = await refusal(forward());
  expect(error).toMatchObject({ code: "RESOURCE_EXHAUSTED", reason: "RATE_LIMITED", metadata: { limit: "1" } });
  expect([fixture.leases.length, fixture.upstream.requests.length]).toEqual([1, 1]);
});

test("a request that ends, in whatever way, makes room for the next", async () => {
  const fixture = await startProxyFixture({ accountInFlight: 1 });
  ends.push(() => fixture.stop());
  // What is not repeated when its connection breaks.
  const forward = (url = "/things") =>
    fixture.gateway.forward(forwardRequest({ url, method: "POST" }), {
      token: fixture.token,
      deadlineMs: Date.now() + 10_000,
    });
  fixture.upstream.answerWith(() => undefined);
  const hanging = refusal(forward("/hangs").then(() => undefined));
  await vi.waitFor(() => expect(fixture.upstream.requests).toHaveLength(1));
  expect((await refusal(forward())).reason).toBe("TOO_MANY_IN_FLIGHT");
  for (const socket of fixture.upstream.sockets) socket.destroy();
  expect((await hanging).reason).toMatch(/^UPSTREAM_/);
  fixture.upstream.answerWith(ok("{}"));
  expect((await forward()).status).toBe(200);
});

test("a stream is at work until it ends, in whatever way", async () => {
  const fixture = await startProxyFixture({ accountInFlight: 1 });
  ends.push(() => fixture.stop());
  fixture.upstream.answerWith((socket) => socket.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart"));
  const options = { token: fixture.token, deadlineMs: Date.now() + 10_000 };
  async function* pieces() {
    yield { piece: { $case: "head" as const, value: forwardRequest() } };
  }
  for (let round = 0; round < 2; round += 1) {
    const leaving = new AbortController();
    const answer = fixture.gateway.forwardStream(pieces(), { ...options, signal: leaving.signal });
    expect((await answer[Symbol.asyncIterator]().next()).value).toMatchObject({ piece: { $case: "head" } });
    expect((await refusal(fixture.gateway.forward(forwardRequest(), options))).reason).toBe("TOO_MANY_IN_FLIGHT");
    leaving.abort();
    await vi.waitFor(() => expect(fixture.upstream.sockets.size).toBe(0));
  }
});
