// The service's background jobs, run inside its process: postings of events, telling of accounts that
// expire, and deleting what is old. The queue wakes whoever is free; what is to be
// done stands in rows (webhook-lanes.ts), so a sweep each minute finds whatever a job was lost for: a process that was killed
// while it worked, or before it could ask to be called again.
import { Logger as QueueLogger, run } from "graphile-worker";
import { sql } from "kysely";
import { openPool, type PoolOptions } from "#libs/database.ts";
import { stopQueue } from "#libs/stop-queue.ts";
import { type DeliveryOptions, deliverEvents } from "./deliver-events.ts";
import { connectPageOf, tellExpiring } from "./expiring-accounts.ts";
import { pruneHistory } from "./prune-history.ts";
import type { AccountDatabase } from "./schema.ts";
import { deliverTask, expireDeliveries, requestDelivery } from "./webhook-deliveries.ts";
import type { EndpointKey } from "./webhook-endpoints.ts";
import { listOverdue, listWaiting } from "./webhook-lanes.ts";

// Nearly all of the time of a job is waiting for a receiver; endpoints that are slow must not keep others from theirs.
const concurrency = 50;
const maxConnections = 6;
const localQueueMs = 1_000;
const overdueMs = 10_000;
const stopMs = 10_000;

/** What the jobs work with. */
export interface JobOptions extends DeliveryOptions {
  readonly gatewayUrl: string;
  /** For how long events, and connections that have ended, are kept. */
  readonly historyMs: number;
}

/** The names of what is done each minute, and each hour. */
export const sweepTask = "sweep";
export const pruneTask = "prune";

/** Starts the jobs. `stop` lets postings under way end. */
export async function startJobs(
  options: JobOptions,
  database: Omit<PoolOptions, "maxConnections">,
  now: () => number,
): Promise<{ stop(): Promise<void> }> {
  const { db } = options;
  const stopping = new AbortController();
  const pool = openPool({ ...database, maxConnections });
  // What a process that was killed has left does not wait for the sweep: looking at it tells when its claims run out.
  for (const endpoint of await listWaiting(db)) await requestDelivery(db, endpoint);
  const runner = await run({
    pgPool: pool,
    concurrency,
    noHandleSignals: true,
    logger: new QueueLogger(() => () => {}),
    // Batched, what is noted of jobs that ended is repeated when the database does not take it, and awaited by a stop.
    // And one looks for jobs for all: fifty that each look every two seconds would keep the database busy for nothing. It may take
    // more than there are hands for; those go back after a second, for another process.
    preset: {
      worker: { completeJobBatchDelay: 0, failJobBatchDelay: 0, localQueue: { size: concurrency, ttl: localQueueMs } },
    },
    crontab: `* * * * * ${sweepTask}\n7 * * * * ${pruneTask}`,
    taskList: {
      [deliverTask]: (payload) => deliverEvents(options, payload as EndpointKey, now, stopping.signal),
      [sweepTask]: async () => {
        await expireDeliveries(db, new Date(now()));
        await tellExpiring(db, new Date(now()), connectPageOf(options.gatewayUrl));
        await requestOverdue(db, now(), overdueMs);
        await releaseJobs(db);
      },
      [pruneTask]: () => pruneHistory(db, new Date(now() - options.historyMs), stopping.signal),
    },
  });
  return {
    async stop() {
      stopping.abort();
      await stopQueue(runner, pool, stopMs);
    },
  };
}

async function requestOverdue(db: AccountDatabase, nowMs: number, sinceMs: number): Promise<void> {
  const overdue = await listOverdue(db, new Date(nowMs - sinceMs), new Date(nowMs));
  for (const endpoint of overdue) await requestDelivery(db, endpoint);
}

/** Frees the jobs of processes that were killed, which the queue by itself does after four hours. */
async function releaseJobs(db: AccountDatabase): Promise<void> {
  await sql`
    select graphile_worker.force_unlock_workers(array(
      select distinct locked_by from graphile_worker._private_jobs where locked_at < now() - interval '10 minutes'
    ))`.execute(db);
}
