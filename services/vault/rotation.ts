// Rotation of the key-encryption key (KEK) without stopping. The operator adds a KEK to the keyring of every process, makes it
// active, and calls RotateKeys, which notes it as the target. From then on each process looks every few seconds for rows under
// another KEK and wraps their data keys anew; the secrets are not decrypted.
//
// A loop over what the rows say, not a job of the queue: a job whose process is killed stays locked for hours, and its end
// would miss the rows that are wrapped under the old KEK afterwards (by a process that has not seen the change, by a backup
// that was put back). Here nothing has to be resumed: whoever looks next finds what is left, and when the count is 0 looking
// costs a few steps in an index. The target stands in the database because keyrings on several machines change one after the
// other: without it a process with the old one active would wrap back what another has just wrapped.
//
// No row is locked while a key service is asked. A batch is read, wrapped, and written where the row still has the wrapping
// that was read, skipping rows that a refresh or a revocation holds: those wait for the next pass. Several processes at once
// start at different random data key ids, and meeting costs double work and nothing else. Readers never fail: a row read
// before the change opens under the old KEK, which stays in the keyring until nothing needs it.
//
// Killed at any point: what was written is done, the rest is as before.
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { invalidField, StatusError } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import type { Logger } from "#libs/log.ts";
import { type Actor, insertAuditEntries } from "./audit-entries.ts";
import { deleteReport, findRotationTarget, listReports, putRotationTarget, reportKeks } from "./key-rotation.ts";
import type { KekProvider } from "./keyring.ts";
import type { VaultDatabase } from "./schema.ts";
import {
  countDataKeys,
  listKekIds,
  listWrapped,
  type RewrappedRow,
  replaceWrapped,
  type SealedTable,
  sealedTables,
  type WrappedRow,
} from "./sealed-tables.ts";

/** What a rotation needs. */
export interface RotationOptions {
  readonly db: VaultDatabase;
  readonly provider: KekProvider;
  readonly log: Logger;
  readonly intervalMs: number;
}

/** The rotation of one process. */
export interface Rotation {
  /** Makes the active KEK the target, which must be `kekId` unless that is empty. Gives how many data keys are to be wrapped anew. */
  begin(kekId: string, actor: Actor): Promise<bigint>;
  status(): Promise<RotationStatus>;
  stop(): Promise<void>;
}

/** How a rotation is doing. */
export interface RotationStatus {
  /** Data keys that this process could not unwrap when it last looked. */
  readonly damaged: number;
  /** How many vault processes are running, and how many of them hold each KEK. */
  readonly processes: number;
  readonly processesByKek: ReadonlyMap<string, number>;
}

// As many calls at once to a key service, and a write of a few milliseconds.
const batchRows = 64;
const logEveryMs = 1_000;
// A row that cannot be unwrapped is tried again, but not as often as a look is cheap.
const damagedIntervals = 12;
const namedInLog = 10;

/** Starts looking. */
export function startRotation({ db, provider, log, intervalMs }: RotationOptions): Rotation {
  const processId = newId("int");
  const stopping = new AbortController();
  let wake = new AbortController();
  let damaged = 0;

  async function report(): Promise<void> {
    const kekIds = await provider.keyIds().then(
      ({ all }) => all,
      (error: unknown) => {
        // A sealed process holds none, which keeps others from a rotation that it could not follow. A key service that is
        // away says nothing: the report before stands until it is too old.
        if (error instanceof StatusError && error.reason === "SEALED") return [];
        throw error;
      },
    );
    await reportKeks(db, processId, kekIds);
  }

  async function look(): Promise<Pass> {
    const target = await findRotationTarget(db);
    if (target === undefined) return { rewrapped: 0, damaged: 0 };
    const { active } = await provider.keyIds();
    if (active !== target) {
      log.warn({ targetKekId: target, activeKekId: active }, "another key is active here than keys are rotated to");
      return { rewrapped: 0, damaged: 0 };
    }
    return rewrapAll({ db, provider, log, signal: stopping.signal }, target);
  }

  async function loop(): Promise<void> {
    while (!stopping.signal.aborted) {
      let pauseMs = intervalMs;
      try {
        const pass = await look();
        damaged = pass.damaged;
        if (pass.damaged > 0 && pass.rewrapped === 0) pauseMs *= damagedIntervals;
      } catch (error) {
        // A database or key service that is away; rows stay as they are.
        log.warn({ err: error }, "the rotation of keys pauses");
      }
      await sleep(pauseMs, undefined, { signal: wake.signal }).catch(() => undefined);
      if (!stopping.signal.aborted) wake = new AbortController();
    }
  }

  const reportNow = () =>
    report().catch((error: unknown) => log.warn({ err: error }, "the keys could not be reported"));
  let reported = reportNow();
  const timer = setInterval(() => {
    reported = reportNow();
  }, intervalMs);
  const looping = loop();

  return {
    async begin(kekId, actor) {
      const { active, all } = await provider.keyIds();
      if (kekId !== "" && !all.includes(kekId)) {
        throw invalidField("activate_kek_id", "is not in the keyring: add it first, everywhere");
      }
      if (kekId !== "" && kekId !== active) throw notActive(active);
      await report();
      const lacking = (await listReports(db)).filter(({ kekIds }) => !kekIds.includes(active)).length;
      if (lacking > 0) throw notEverywhere(lacking);
      const remaining = [...(await countDataKeys(db))].reduce(
        (sum, [id, count]) => sum + (id === active ? 0n : count),
        0n,
      );
      await db.transaction().execute(async (transaction) => {
        await putRotationTarget(transaction, active);
        await insertAuditEntries(transaction, { action: "keys.rotated", actor, reason: active });
      });
      log.info({ targetKekId: active, remaining: Number(remaining) }, "keys are being rotated");
      wake.abort();
      return remaining;
    },
    async status() {
      const reports = await listReports(db);
      const processesByKek = new Map<string, number>();
      for (const id of reports.flatMap(({ kekIds }) => kekIds)) {
        processesByKek.set(id, (processesByKek.get(id) ?? 0) + 1);
      }
      return { damaged, processes: reports.length, processesByKek };
    },
    async stop() {
      clearInterval(timer);
      stopping.abort();
      wake.abort();
      await looping;
      await reported;
      await deleteReport(db, processId);
    },
  };
}

function notActive(active: string): StatusError {
  return new StatusError(
    "FAILED_PRECONDITION",
    "KEK_NOT_ACTIVE",
    `activate_kek_id: is in the keyring, but ${active} is active: activate it there first.`,
  );
}

function notEverywhere(processes: number): StatusError {
  return new StatusError(
    "FAILED_PRECONDITION",
    "KEK_NOT_EVERYWHERE",
    `${processes} running vault processes do not hold the active key: they could not open what is rotated to it.`,
  );
}

/** What one pass over all tables did. */
interface Pass {
  readonly rewrapped: number;
  readonly damaged: number;
}

type PassOptions = Pick<RotationOptions, "db" | "provider" | "log"> & { readonly signal: AbortSignal };

/** Goes once over every row that is under another KEK. */
async function rewrapAll({ db, provider, log, signal }: PassOptions, target: string): Promise<Pass> {
  const pass = { rewrapped: 0, damaged: 0 };
  let loggedMs = performance.now();
  for (const table of sealedTables) {
    for (const kekId of await listKekIds(db, table)) {
      if (kekId === target) continue;
      for await (const rows of batchesUnder(db, table, kekId)) {
        if (signal.aborted) return pass;
        const { rewrapped, unreadable } = await rewrap(provider, rows, target);
        pass.rewrapped += await replaceWrapped(db, table, { from: kekId, to: target }, rewrapped);
        for (const { accountId, dataKeyId, reason } of unreadable) {
          pass.damaged += 1;
          const line = { table: table.name, recordId: accountId, dataKeyId, reason };
          if (pass.damaged <= namedInLog) log.error(line, "a data key cannot be unwrapped");
        }
        if (performance.now() - loggedMs < logEveryMs) continue;
        loggedMs = performance.now();
        log.info({ targetKekId: target, ...pass }, "rotating keys");
      }
    }
  }
  if (pass.rewrapped > 0 || pass.damaged > 0)
    log.info({ targetKekId: target, ...pass }, "a pass of the rotation ended");
  return pass;
}

/** All rows under a KEK, from a random one to the end and then from the beginning. */
async function* batchesUnder(
  db: VaultDatabase,
  table: SealedTable,
  kekId: string,
): AsyncGenerator<readonly WrappedRow[]> {
  const pivot = `dk_${randomBytes(8).toString("hex")}`;
  for (const [start, end] of [
    [pivot, undefined],
    ["", pivot],
  ] as const) {
    let afterId = start;
    for (;;) {
      const rows = await listWrapped(db, table, { kekId, afterId, limit: batchRows });
      const within = rows.filter(({ dataKeyId }) => end === undefined || dataKeyId <= end);
      if (within.length > 0) yield within;
      if (within.length < batchRows) break;
      afterId = within.at(-1)?.dataKeyId ?? "";
    }
  }
}

interface Unreadable extends WrappedRow {
  readonly reason: string;
}

/** Wraps the data keys of a batch anew; those that cannot be unwrapped for good stand apart. */
async function rewrap(provider: KekProvider, rows: readonly WrappedRow[], target: string) {
  const rewrapped: RewrappedRow[] = [];
  const unreadable: Unreadable[] = [];
  const one = async (row: WrappedRow) => {
    try {
      const fresh = await provider.wrap(await provider.unwrap(row, row), row);
      if (fresh.kekId !== target) throw new Error("the active key has changed during the rotation");
      rewrapped.push({ row, wrappedDataKey: fresh.wrappedDataKey });
    } catch (error) {
      if (!(error instanceof StatusError) || error.code !== "DATA_LOSS") throw error;
      unreadable.push({ ...row, reason: error.reason });
    }
  };
  await Promise.all(rows.map(one));
  return { rewrapped, unreadable };
}
