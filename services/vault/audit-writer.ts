// Writes the entries that stand in no transaction, above all those of leases: a lease costs a push into a list, and one insert
// a moment later takes all that have gathered. So an entry is at most 50 ms behind what it tells, and a process that is killed
// loses the entries of that time.
//
// Nothing is given out unaudited for longer. When the oldest entry cannot be written (an error, a full disk, a lock, a disk that
// hangs), this gate closes within a second: the vault serves nothing more, and says so. What is in the list stays there and is
// tried again until it is written, and then the gate opens by itself. An insert whose acknowledgement
// was lost is repeated: an entry may stand there twice, and never not at all.
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "#libs/log.ts";
import { auditUnavailable, insertAuditEntries, type NewAuditEntry } from "./audit-entries.ts";
import type { Gate } from "./gate.ts";
import type { VaultDatabase } from "./schema.ts";

/** The writer of one process. It is a gate: closed while nothing can be written. */
export interface AuditWriter extends Gate {
  /** Takes an entry; throws AUDIT_UNAVAILABLE while the gate is closed. What is told of must not be given out before. */
  note(entry: NewAuditEntry): void;
  /** Writes what is left, for some seconds at most. */
  stop(): Promise<void>;
}

// With the insert behind it: 50 ms.
const gatherMs = 20;
// A connection that broke is worth another try; an answer that is late may be on its way, on a busy machine.
const failedAfterMs = 400;
const hangingAfterMs = 700;
const retryMs = 50;
// A timer may fire a moment early.
const timerMs = 2;
const stopMs = 5_000;
// One statement's worth: a tenth of a second's leases at full load.
const batchEntries = 500;
// At several thousand leases a second, those of the time until the gate closes.
const mostEntries = 20_000;

/** Starts the writer. `db` should be its own: a connection that others have taken would look like a log that hangs. */
export function startAuditWriter({ db, log }: { readonly db: VaultDatabase; readonly log: Logger }): AuditWriter {
  const entries: { readonly entry: NewAuditEntry; readonly notedMs: number }[] = [];
  const listeners: ((open: boolean) => void)[] = [];
  let isOpen = true;
  let writing: Promise<void> | undefined;
  let giveUpMs = Number.POSITIVE_INFINITY;

  function settle(open: boolean, cause?: unknown): void {
    if (open === isOpen) return;
    isOpen = open;
    if (open) log.info("the audit is written again: the vault is open");
    else log.error({ err: cause, waiting: entries.length }, "the audit cannot be written: the vault is closed");
    for (const listener of listeners) listener(open);
  }

  const oldestAgeMs = () => performance.now() - (entries[0]?.notedMs ?? performance.now());

  async function writeBatch(): Promise<void> {
    const batch = entries.slice(0, batchEntries);
    const nowMs = performance.now();
    const delayed = batch.map(({ entry, notedMs }) => ({ ...entry, delayMs: Math.round(nowMs - notedMs) }));
    // What has been answered meanwhile is read before the look, so that a busy process does not close by mistake.
    const leftMs = Math.max(0, hangingAfterMs - oldestAgeMs()) + timerMs;
    const alarm = setTimeout(() => setImmediate(closeAfter, hangingAfterMs), leftMs);
    try {
      await insertAuditEntries(db, ...delayed);
      entries.splice(0, batch.length);
      // Not while others wait that are as old: they would close it again at once.
      if (oldestAgeMs() < failedAfterMs) settle(true);
    } finally {
      clearTimeout(alarm);
    }
  }

  function closeAfter(ageMs: number, cause?: unknown): void {
    if (oldestAgeMs() >= ageMs) settle(false, cause);
  }

  async function writeAll(): Promise<void> {
    await sleep(gatherMs);
    while (entries.length > 0 && performance.now() < giveUpMs) {
      try {
        await writeBatch();
      } catch (error) {
        closeAfter(failedAfterMs, error);
        await sleep(retryMs);
      }
    }
    // Here and not by whoever waits for the end: an entry in between would start nothing.
    writing = undefined;
  }

  function requireOpen(): void {
    if (!isOpen) throw auditUnavailable();
  }

  return {
    requireOpen,
    isOpen: () => isOpen,
    onChange(listener) {
      listeners.push(listener);
      listener(isOpen);
    },
    note(entry) {
      requireOpen();
      if (entries.length >= mostEntries) throw auditUnavailable();
      entries.push({ entry, notedMs: performance.now() });
      writing ??= writeAll();
    },
    async stop() {
      giveUpMs = performance.now() + stopMs;
      await writing;
      if (entries.length > 0) log.error({ lost: entries.length }, "entries of the audit could not be written");
    },
  };
}
