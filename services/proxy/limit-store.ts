// Where counts of requests are kept: in this process, or in a Redis/Valkey or Postgres that several processes share. While a
// shared store is away each process counts for itself: limits get looser, and nobody is turned away for our trouble.
import { Redis } from "ioredis";
import {
  type RateLimiterAbstract,
  RateLimiterMemory,
  RateLimiterPostgres,
  RateLimiterRedis,
} from "rate-limiter-flexible";
import { openPool } from "#libs/database.ts";
import type { Logger } from "#libs/log.ts";

/** Makes counters. */
export interface LimitStore {
  /** Counts by key; a key's count begins anew when so many seconds have passed since its first. */
  counter(name: string, windowSeconds: number): RateLimiterAbstract;
  close(): Promise<void>;
}

/** Where the store is. */
export interface LimitStoreOptions {
  /** `redis://`, `rediss://` or `postgres://`; empty for this process's memory. */
  readonly url: string;
  readonly password: string;
  readonly log: Logger;
}

// Who goes beyond a limit is told so by whoever counts, so that each project can have a limit of its own.
const points = Number.MAX_SAFE_INTEGER;
// A store that takes longer is not worth waiting for.
const storeTimeoutMs = 250;

/** Opens the store that the URL names. Throws for a URL of another kind, and when a Postgres does not take the table. */
export async function openLimitStore({ url, password, log }: LimitStoreOptions): Promise<LimitStore> {
  if (url === "") return memoryStore();
  const { protocol } = new URL(url);
  if (protocol === "redis:" || protocol === "rediss:") return redisStore(url, password, log);
  if (protocol === "postgres:" || protocol === "postgresql:") return postgresStore(url, password, log);
  throw new Error("DEPUTY_LIMIT_STORE_URL: is neither redis://, rediss:// nor postgres://");
}

function memoryStore(): LimitStore {
  return { counter: memoryCounter, close: async () => undefined };
}

function memoryCounter(keyPrefix: string, duration: number): RateLimiterAbstract {
  return new RateLimiterMemory({ keyPrefix, points, duration });
}

async function redisStore(url: string, password: string, log: Logger): Promise<LimitStore> {
  const client = new Redis(url, {
    ...(password !== "" && { password }),
    connectTimeout: storeTimeoutMs,
    commandTimeout: storeTimeoutMs,
    maxRetriesPerRequest: 1,
    lazyConnect: true,
    // Without a connection a count fails at once, and this process counts instead.
    enableOfflineQueue: false,
  });
  client.on("ready", () => log.info("the store of limits is reached"));
  client.on("error", (error) => log.warn({ err: error }, "the store of limits is not reached"));
  // It goes on trying; that it failed once was logged.
  await client.connect().catch(() => undefined);
  return {
    counter: (keyPrefix, duration) =>
      new RateLimiterRedis({
        storeClient: client,
        keyPrefix: `deputy:${keyPrefix}`,
        points,
        duration,
        insuranceLimiter: memoryCounter(keyPrefix, duration),
      }),
    close: async () => client.disconnect(),
  };
}

async function postgresStore(url: string, password: string, log: Logger): Promise<LimitStore> {
  const pool = openPool({
    url,
    ...(password !== "" && { password }),
    applicationName: "deputy-proxy",
    statementTimeoutMs: storeTimeoutMs,
    maxConnections: 10,
    onIdleError: (error) => log.warn({ err: error }, "the store of limits is not reached"),
  });
  await pool.query(
    "create table if not exists request_counts (key varchar(255) primary key, points int not null default 0, expire bigint)",
  );
  return {
    counter: (keyPrefix, duration) =>
      new RateLimiterPostgres({
        storeClient: pool,
        storeType: "pool",
        tableName: "request_counts",
        tableCreated: true,
        clearExpiredByTimeout: true,
        keyPrefix,
        // The column is an int4.
        points: 2_000_000_000,
        duration,
        insuranceLimiter: memoryCounter(keyPrefix, duration),
      }),
    close: () => pool.end(),
  };
}
