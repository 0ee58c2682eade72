// The vault's background jobs, run inside its process because only it can open the tokens: the outbox of revocations, and a
// sweep every few minutes. The queue repeats what fails, with growing pauses; processes share it.
import { Logger as QueueLogger, run } from "graphile-worker";
import { sql } from "kysely";
import { openPool, type PoolOptions } from "#libs/database.ts";
import { stopQueue } from "#libs/stop-queue.ts";
import { sweepAuthorizations } from "./authorizations.ts";
import type { CallersFirst } from "./callers-first.ts";
import { pruneInvalidations } from "./lease-invalidations.ts";
import { pruneWatchers } from "./lease-watchers.ts";
import { type RevocationJobOptions, RevocationRetry, revoke } from "./revocation-job.ts";
import { revokeTask } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import { settleDeferredRevocations } from "./shared-grants.ts";

// Revocations come in bursts of a whole environment: few at a time spare the provider and leave the process to its callers.
const concurrency = 4;

// Who asks for more is asked again all the same.
const maxRetryAfterSeconds = 3_600;

// An attempt at a provider that is slow; the rest of the stop has to fit in as well.
const stopMs = 15_000;

/** The name of the sweep. */
export const sweepTask = "sweep";

/** Starts the jobs. `stop` lets those at work end. A queue that breaks for good ends the process: nothing would be revoked. */
export async function startJobs(
  options: RevocationJobOptions & { readonly callersFirst: CallersFirst },
  database: Omit<PoolOptions, "maxConnections">,
): Promise<{ stop(): Promise<void> }> {
  const pool = openPool({ ...database, maxConnections: concurrency + 2 });
  const runner = await run({
    pgPool: pool,
    concurrency,
    noHandleSignals: true,
    // The queue's own lines quote job payloads; which hold ids alone, but one source of log lines is enough.
    logger: new QueueLogger(() => () => {}),
    // Batched, what is noted of jobs that ended is repeated when the database does not take it, and awaited by a stop.
    preset: { worker: { completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
    crontab: `*/5 * * * * ${sweepTask}`,
    taskList: {
      [revokeTask]: async (payload, { job }) => {
        const { projectId, id } = payload as { projectId: string; id: string };
        await options.callersFirst.standBack();
        try {
          await revoke(options, { projectId, id }, job.attempts >= job.max_attempts);
        } catch (error) {
          if (error instanceof RevocationRetry) await delayJob(options.db, job.id, error.waitSeconds);
          throw error;
        }
      },
      [sweepTask]: async () => {
        await sweepAuthorizations(options.db);
        await releaseJobs(options.db);
        await pruneWatchers(options.db);
        await pruneInvalidations(options.db);
        await settleDeferredRevocations(options.db);
      },
    },
  });
  return {
    async stop() {
      await stopQueue(runner, pool, stopMs);
    },
  };
}

/**
 * Frees the jobs of processes that were killed, which the queue by itself does after four hours. No attempt takes ten
 * minutes, and one that is made twice does no harm.
 */
async function releaseJobs(db: VaultDatabase): Promise<void> {
  await sql`
    select graphile_worker.force_unlock_workers(array(
      select distinct locked_by from graphile_worker._private_jobs where locked_at < now() - interval '10 minutes'
    ))`.execute(db);
}

/** Lets a job that is about to fail wait for so long, and then for the queue's own pause. */
async function delayJob(db: VaultDatabase, id: string, waitSeconds: number): Promise<void> {
  if (waitSeconds <= 0) return;
  const seconds = Math.min(waitSeconds, maxRetryAfterSeconds);
  await sql`
    update graphile_worker._private_jobs set run_at = now() + make_interval(secs => ${seconds}) where id = ${id}`.execute(
    db,
  );
}
