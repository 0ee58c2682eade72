// Tells providers which grants are over (RFC 7009): jobs of the outbox, run inside the vault process because only it can open
// the tokens. The refresh token goes first, since with most providers it takes the whole grant along. The queue repeats what
// fails, with growing pauses; after seven days the record says FAILED, for ever, and the tokens are wiped all the same.
import { Logger as QueueLogger, type Runner, run } from "graphile-worker";
import type { Catalog } from "#libs/catalog.ts";
import { openPool, type PoolOptions } from "#libs/database.ts";
import { StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import { isOauthApp, revokeToken } from "./provider.ts";
import type { ProviderAccess } from "./provider-http.ts";
import {
  completeRevocation,
  findRevocation,
  noteRevocationError,
  type RevocationRow,
  type RevocationSecrets,
  revocationOwner,
  revokeTask,
} from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";

/** What the worker is made of. */
export interface RevocationWorkerOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly providers: ProviderAccess;
  readonly log: Logger;
}

// Revocations come in bursts of a whole environment: few at a time spare the provider and leave the process to its callers.
const concurrency = 4;

/** Starts working through the outbox. `stop` lets the jobs at work end. */
export async function startRevocationWorker(
  options: RevocationWorkerOptions,
  database: Omit<PoolOptions, "maxConnections">,
): Promise<{ stop(): Promise<void> }> {
  const pool = openPool({ ...database, maxConnections: concurrency + 2 });
  const runner: Runner = await run({
    pgPool: pool,
    concurrency,
    noHandleSignals: true,
    // The queue's own lines quote job payloads; which hold ids alone, but one source of log lines is enough.
    logger: new QueueLogger(() => () => {}),
    taskList: {
      [revokeTask]: (payload, { job }) => {
        const { projectId, id } = payload as { projectId: string; id: string };
        return revoke(options, { projectId, id }, job.attempts >= job.max_attempts);
      },
    },
  });
  runner.promise.catch((error: unknown) => options.log.error({ err: error }, "the revocation worker has stopped"));
  return {
    async stop() {
      await runner.stop();
      await pool.end();
    },
  };
}

/** One attempt; throws to be repeated. */
async function revoke(
  options: RevocationWorkerOptions,
  key: { readonly projectId: string; readonly id: string },
  isLast: boolean,
): Promise<void> {
  const { db, log } = options;
  const row = await findRevocation(db, key);
  if (row === undefined || row.state !== "PENDING") return;
  const error = await tell(options, row).catch((failure: unknown) => {
    // A sealed vault, a record that does not open, fields that fit no endpoint: the attempts end here too.
    if (failure instanceof StatusError) return failure.reason;
    throw failure;
  });
  const { id, accountId, appSlug } = row;
  if (error === undefined) {
    await completeRevocation(db, key, "DONE");
    log.info({ revocationId: id, accountId, appSlug }, "revoked at the provider");
    return;
  }
  await noteRevocationError(db, key, error);
  log.warn({ revocationId: id, accountId, appSlug, error }, "the provider did not revoke");
  if (!isLast && !row.expired) throw new Error(error);
  await completeRevocation(db, key, "FAILED");
}

/** Tells the provider of both tokens; gives why it could not, by a stable name. */
async function tell({ secrets, catalog, providers }: RevocationWorkerOptions, row: RevocationRow) {
  const app = catalog.get(row.appSlug);
  if (app === undefined || !isOauthApp(app)) return "APP_NOT_IN_CATALOG";
  const value = await secrets.open<RevocationSecrets>(revocationOwner(row), { ...row, generation: 0n });
  const context = { app, client: value.client, fields: value.fields };
  for (const hint of ["refresh_token", "access_token"] as const) {
    const token = hint === "refresh_token" ? value.refreshToken : value.accessToken;
    if (token === undefined) continue;
    const outcome = await revokeToken(providers, context, { token, hint });
    if (outcome.kind === "retry") return outcome.error;
    if (outcome.kind === "unsupported") return "REVOCATION_UNSUPPORTED";
  }
  return undefined;
}
