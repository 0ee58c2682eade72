// Seals what is in the audit: takes the entries that were committed, chains them and signs a checkpoint (audit-chain.ts), a few
// times a second, in one process at a time. Whoever comes while another seals leaves it to that one. Killed at any point: the
// transaction is as if it had never been, and the next one takes the same entries.
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "#libs/log.ts";
import type { SigningKey } from "#libs/signing-key.ts";
import { chainEntries, firstHash, signCheckpoint } from "./audit-chain.ts";
import { findHead, hasPendingEntries, insertCheckpoint, listPendingEntries, lockSealing } from "./audit-checkpoints.ts";
import { readClock } from "./credentials.ts";
import type { VaultDatabase } from "./schema.ts";

/** What sealing needs. */
export interface SealerOptions {
  readonly db: VaultDatabase;
  readonly signingKey: SigningKey;
  readonly log: Logger;
}

// The time in which the database's superuser could change an entry unseen. A look that finds nothing costs one index read.
const pollMs = 200;
const mostEntries = 1_000;
const logEveryMs = 60_000;

/** Starts sealing. `stop` seals what is left. */
export function startAuditSealer(options: SealerOptions): { stop(): Promise<void> } {
  const { log } = options;
  const stopping = new AbortController();
  let isFailing = false;
  let loggedMs = Number.NEGATIVE_INFINITY;
  let loggedNumber: bigint | undefined;

  async function logHead(): Promise<void> {
    if (performance.now() - loggedMs < logEveryMs) return;
    loggedMs = performance.now();
    const head = await findHead(options.db);
    if (head === undefined || head.number === loggedNumber) return;
    loggedNumber = head.number;
    log.info({ number: Number(head.number), hash: head.hash.toString("hex") }, "audit head");
  }

  async function sealAll(): Promise<void> {
    try {
      while ((await sealOnce(options)) === mostEntries);
      await logHead();
      isFailing = false;
    } catch (error) {
      if (!isFailing) log.error({ err: error }, "the audit cannot be sealed");
      isFailing = true;
    }
  }

  async function run(): Promise<void> {
    while (!stopping.signal.aborted) {
      await sealAll();
      await sleep(pollMs, undefined, { signal: stopping.signal }).catch(() => undefined);
    }
    await sealAll();
  }

  const running = run();
  return {
    async stop() {
      stopping.abort();
      await running;
    },
  };
}

/** Makes one checkpoint. Gives of how many entries: of none when nothing waits, or another process is at it. */
export async function sealOnce({ db, signingKey }: SealerOptions): Promise<number> {
  if (!(await hasPendingEntries(db))) return 0;
  return db.transaction().execute(async (transaction) => {
    // Entries and head are read after the lock: whoever had it before has committed.
    if (!(await lockSealing(transaction))) return 0;
    const entries = await listPendingEntries(transaction, mostEntries);
    if (entries.length === 0) return 0;
    const before = await findHead(transaction);
    const prevHash = before?.hash ?? firstHash;
    const entryHashes = chainEntries(prevHash, entries);
    const head = {
      number: (before?.number ?? 0n) + 1n,
      time: await readClock(transaction),
      prevHash,
      hash: entryHashes.at(-1) ?? prevHash,
      keyId: signingKey.keyId,
    };
    const signature = signCheckpoint(head, signingKey);
    await insertCheckpoint(transaction, { ...head, signature, entryIds: entries.map(({ id }) => id), entryHashes });
    return entries.length;
  });
}
