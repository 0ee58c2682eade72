// The audit as lines of JSON: for each checkpoint, in their order, one line with all of its entries, then a line for each entry
// that no checkpoint has yet. So whoever verifies (audit-verify.ts) reads it once from front to back and keeps nothing.
import { type RawBuilder, sql } from "kysely";
import { z } from "zod";
import type { AuditEntry } from "./audit-chain.ts";
import type { VaultDatabase } from "./schema.ts";

const id = z.string().regex(/^[1-9]\d{0,18}$/);
const time = z.iso.datetime({ precision: 3 });
const bytes = z.string().regex(/^([0-9a-f]{2})+$/);

// Strict: a field that is not hashed could say anything.
const entry = z.strictObject({
  id,
  time,
  delay_ms: z.int().nonnegative(),
  action: z.string(),
  service: z.string(),
  subject: z.string(),
  project_id: z.string(),
  environment: z.string(),
  external_user_id: z.string(),
  account_id: z.string(),
  purpose: z.string(),
  request_id: z.string(),
  reason: z.string(),
});

const checkpoint = z.strictObject({
  number: id,
  time,
  entry_ids: z.array(id).min(1),
  entry_hashes: z.array(bytes),
  prev_hash: bytes,
  hash: bytes,
  key_id: z.string(),
  signature: bytes,
});

const line = z.union([z.strictObject({ checkpoint, entries: z.array(entry) }), z.strictObject({ entry })]);

/** A line of a dump. */
export type DumpLine = z.infer<typeof line>;

/** A checkpoint of a dump. */
export type DumpedCheckpoint = z.infer<typeof checkpoint>;

const pageCheckpoints = 20;

/** Reads a line; undefined when it is none of a dump. */
export function readDumpLine(text: string): DumpLine | undefined {
  try {
    return line.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** The entry of a dump as it is hashed. */
export function entryOf(dumped: z.infer<typeof entry>): AuditEntry {
  const { id, time, delay_ms, project_id, external_user_id, account_id, request_id, ...same } = dumped;
  const ids = { projectId: project_id, externalUserId: external_user_id, accountId: account_id, requestId: request_id };
  return { ...same, ...ids, id: BigInt(id), time: new Date(time), delayMs: delay_ms };
}

/** Dumps the audit as it is at one moment. */
export async function* dumpAudit(db: VaultDatabase): AsyncGenerator<DumpLine> {
  const transaction = await db.startTransaction().setIsolationLevel("repeatable read").execute();
  try {
    yield* dumpCheckpoints(transaction);
    for (const unsealed of await listUnsealed(transaction)) yield { entry: unsealed };
  } finally {
    await transaction.rollback().execute();
  }
}

async function* dumpCheckpoints(db: VaultDatabase): AsyncGenerator<DumpLine> {
  for (let after = "0"; ; ) {
    const page = await listCheckpoints(db, after);
    const found = await listEntries(
      db,
      page.flatMap(({ entry_ids }) => entry_ids),
    );
    for (const one of page) yield { checkpoint: one, entries: one.entry_ids.flatMap((id) => found.get(id) ?? []) };
    const last = page.at(-1);
    if (last === undefined || page.length < pageCheckpoints) return;
    after = last.number;
  }
}

// Postgres writes the lines: nothing is lost on a way through other types.
async function listCheckpoints(db: VaultDatabase, after: string): Promise<readonly DumpedCheckpoint[]> {
  return readJson<DumpedCheckpoint>(
    db,
    sql`
    select json_build_object('number', number::text, 'time', ${jsonTime}, 'entry_ids', entry_ids::text[],
      'entry_hashes', array(select encode(h, 'hex') from unnest(entry_hashes) with ordinality as u (h, n) order by n),
      'prev_hash', encode(prev_hash, 'hex'), 'hash', encode(hash, 'hex'), 'key_id', key_id,
      'signature', encode(signature, 'hex'))::text as dumped
    from audit_checkpoints where number > ${after}::int8 order by number limit ${pageCheckpoints}`,
  );
}

async function listEntries(db: VaultDatabase, ids: readonly string[]): Promise<ReadonlyMap<string, DumpedEntry>> {
  const found = await readJson<DumpedEntry>(
    db,
    sql`select ${jsonEntry} as dumped from audit_entries where id = any(${[...ids]}::int8[])`,
  );
  return new Map(found.map((one) => [one.id, one]));
}

async function listUnsealed(db: VaultDatabase): Promise<readonly DumpedEntry[]> {
  return readJson<DumpedEntry>(
    db,
    sql`
    select ${jsonEntry} as dumped from audit_entries as e
    where not exists (
      select from audit_checkpoints as c cross join unnest(c.entry_ids) as sealed (id) where sealed.id = e.id
    ) order by id`,
  );
}

async function readJson<Value>(db: VaultDatabase, query: RawBuilder<unknown>): Promise<readonly Value[]> {
  const { rows } = await sql<{ dumped: string }>`${query}`.execute(db);
  return rows.map(({ dumped }) => JSON.parse(dumped));
}

type DumpedEntry = z.infer<typeof entry>;

const jsonTime = sql`to_char(time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`;

const jsonEntry = sql`json_build_object('id', id::text, 'time', ${jsonTime}, 'delay_ms', delay_ms, 'action', action,
  'service', service, 'subject', subject, 'project_id', project_id, 'environment', environment,
  'external_user_id', external_user_id, 'account_id', account_id, 'purpose', purpose, 'request_id', request_id,
  'reason', reason)::text`;
