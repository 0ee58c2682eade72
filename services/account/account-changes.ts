// What has changed about accounts, as a list that can be followed without missing anything, by any number of processes.
// A trigger (migrations/account/0008-account-changes.ts) writes a row in the transaction of each change. The trap is the order:
// transactions do not commit in the order in which they take numbers, so who has read up to a number may have missed a smaller one
// that came to light later. The argument, why that cannot happen here:
//
//   1  A row holds the id of its transaction, `xact`. Ids are given in order, and by the whole database server.
//   2  Of a snapshot, xmin is the lowest id of a transaction that was still running. All below it have ended: in a query with
//      that snapshot all their rows are there that ever will be. So the rows below xmin are final; they are called settled.
//   3  A place in the list is (xact, number), and all that is before it was settled when it was passed: who goes on after it, at
//      whatever process and whenever, is given everything that was not settled then. Nothing is ever added before a place.
//   4  Rows that are not settled are given as well, at once: xmin stands still while any transaction of the server runs, and
//      nobody should wait for somebody else's. But the place does not move for them. Who goes on after it gets them again.
//
// Places are good for as long as the ids count on. Another server, or this one set back to an earlier day, has a history of its
// own, and its ids may be the same: the server's name and its timeline, which changes with each promotion and each recovery, tell
// them apart. A place from before rows that are deleted is of no use either: the deleting notes how far it went, and never goes
// beyond what is settled. Who has such a place is told so and begins anew.
import { type RawBuilder, sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import { startRepeating } from "./repeat.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

/** Where a reader is: what is before it was settled and has been read. */
export interface ChangePlace {
  readonly history: string;
  readonly xact: bigint;
  readonly number: bigint;
}

/** One change. */
export interface AccountChange {
  readonly projectId: string;
  readonly accountId: string;
  readonly environment: AccountRow["environment"];
  /**
   * Whether it may matter to who uses the account: its state, owner, sharing and the like, rather than its name or health. Of an
   * account that is not active nothing does.
   */
  readonly changesUse: boolean;
}

/** Follows the list from one place on. */
export interface ChangeReader {
  /** The next changes, a batch at most, and whether there may be more at once. */
  read(): Promise<{ readonly changes: readonly AccountChange[]; readonly more: boolean }>;
  /** Where to go on after what was read. */
  readonly place: ChangePlace;
}

interface ReadRow extends Pick<AccountChange, "projectId" | "accountId" | "environment" | "changesUse"> {
  readonly history: string;
  readonly horizon: string;
  readonly pruned: string;
  readonly settled: boolean;
  readonly xact: string;
  /** Null when there is no change. */
  readonly number: bigint | null;
}

const history = sql<string>`(select system_identifier from pg_control_system()) || '-' ||
  left(pg_walfile_name(pg_current_wal_lsn()), 8)`;
const horizon = sql<string>`pg_snapshot_xmin(pg_current_snapshot())`;

// One query's worth; also the most that is given before it is settled.
const batchSize = 500;

// A stream lasts an hour at most: who reconnects after that finds what came after its last message.
const keptSeconds = 2 * 3600;
const pruningMs = 60_000;

// Nothing of ours has a transaction open for longer than half a minute.
const longUnsettledSeconds = 120;

/** The place behind everything that has settled. */
export async function presentPlace(db: AccountDatabase): Promise<ChangePlace> {
  const query = sql<Pick<ReadRow, "history" | "horizon">>`select ${history} as history, ${horizon}::text as horizon`;
  const row = (await query.execute(db)).rows[0];
  if (row === undefined) throw new Error("no row for a place");
  return { history: row.history, xact: BigInt(row.horizon), number: 0n };
}

/** Begins to follow the list after a place. Reading throws OUT_OF_RANGE `RESUME_TOKEN_EXPIRED` when what follows it is gone. */
export function readChanges(db: AccountDatabase, start: ChangePlace): ChangeReader {
  let place = start;
  // Numbers that were given before they had settled.
  const early = new Set<bigint>();

  return {
    get place() {
      return place;
    },
    async read() {
      const { rows } = await nextRows(place).execute(db);
      const [first] = rows;
      if (first === undefined) throw new Error("no row for the horizon");
      if (first.history !== place.history || BigInt(first.pruned) >= place.xact) throw expired();
      const found = rows.filter((row): row is ReadRow & { number: bigint } => row.number !== null);
      const settled = found.filter((row) => row.settled);
      const fresh = found.filter((row) => !early.has(row.number));
      for (const { number } of settled) early.delete(number);
      for (const { number, settled: isSettled } of fresh) if (!isSettled) early.add(number);
      const last = settled.at(-1);
      const isFull = found.length === batchSize;
      if (last !== undefined && settled.length === batchSize) {
        place = { ...place, xact: BigInt(last.xact), number: last.number };
      } else {
        place = later(place, BigInt(first.horizon));
      }
      // A full batch of nothing settled stays the same until something settles.
      return { changes: fresh, more: isFull && last !== undefined };
    },
  };
}

/** Deletes old changes until it is stopped, and tells in the log when new ones do not settle. */
export function startPruning(db: AccountDatabase, log: Logger): { stop(): Promise<void> } {
  async function work(): Promise<void> {
    await pruneChanges(db, keptSeconds);
    const unsettledSeconds = await longestUnsettled(db);
    if (unsettledSeconds > longUnsettledSeconds) log.warn({ unsettledSeconds }, "a transaction is open for long");
  }
  return startRepeating({ work, intervalMs: pruningMs, failure: "old account changes could not be deleted" }, log);
}

/** For how many seconds the oldest change that has not settled has waited; 0 when all have. */
export async function longestUnsettled(db: AccountDatabase): Promise<number> {
  const { rows } = await sql<{ seconds: number }>`
    select coalesce(extract(epoch from clock_timestamp() - min(create_time)), 0)::int as seconds
    from account_changes where xact >= ${horizon}`.execute(db);
  return rows[0]?.seconds ?? 0;
}

/** Deletes what is older than any reader should be, and notes how far that went. */
export async function pruneChanges(db: AccountDatabase, olderThanSeconds: number): Promise<void> {
  await sql`
    with gone as (
      delete from account_changes
      where create_time < clock_timestamp() - make_interval(secs => ${olderThanSeconds}) and xact < ${horizon}
      returning xact
    )
    update account_changes_pruned set xact = greatest(xact, (select max(xact) from gone))
    where exists (select from gone)`.execute(db);
}

/** Everything in one statement, and so of one snapshot. At least one row; settled changes come first. */
function nextRows({ xact, number }: ChangePlace): RawBuilder<ReadRow> {
  return sql`
    select ${history} as history, ${horizon}::text as horizon, pruned.xact::text as pruned, change.xact < ${horizon} as settled,
      change.xact::text as xact, change.number, change.project_id, change.account_id, change.environment, change.changes_use
    from account_changes_pruned as pruned left join lateral (
      select * from account_changes where (xact, number) > (${String(xact)}::xid8, ${number})
      order by xact, number limit ${batchSize}
    ) as change on true
    order by change.xact, change.number`;
}

/** Behind all that is below the horizon; the present place when that is further already. */
function later(place: ChangePlace, xact: bigint): ChangePlace {
  return xact > place.xact ? { ...place, xact, number: 0n } : place;
}

/** The accounts of changes as they are now, in the order of the changes; undefined for one whose row is gone. */
export async function accountsOf(
  db: AccountDatabase,
  changes: readonly AccountChange[],
): Promise<readonly (AccountRow | undefined)[]> {
  if (changes.length === 0) return [];
  const found = await changed(db, changes).selectAll().execute();
  return inOrder(changes, found);
}

/** The states of those accounts alone. */
export async function statesOf(
  db: AccountDatabase,
  changes: readonly AccountChange[],
): Promise<readonly AccountRow["state"][]> {
  if (changes.length === 0) return [];
  const found = await changed(db, changes).select(["projectId", "id", "state"]).execute();
  return inOrder(changes, found).map((row) => row?.state ?? "REVOKED");
}

// Read after the changes, so that an account is never older than the change that tells of it.
function changed(db: AccountDatabase, changes: readonly AccountChange[]) {
  const projectIds = changes.map(({ projectId }) => projectId);
  const ids = changes.map(({ accountId }) => accountId);
  const keys = sql`(select * from unnest(${projectIds}::text[], ${ids}::text[]))`;
  return db.selectFrom("accounts").where(sql<boolean>`(project_id, id) in ${keys}`);
}

function inOrder<Row extends Pick<AccountRow, "projectId" | "id">>(
  changes: readonly AccountChange[],
  rows: readonly Row[],
): readonly (Row | undefined)[] {
  const byId = new Map(rows.map((row) => [row.id, row]));
  return changes.map(({ projectId, accountId }) => {
    const row = byId.get(accountId);
    return row?.projectId === projectId ? row : undefined;
  });
}

function expired(): StatusError {
  const message = "What came after this resume token is not kept any more: begin without it.";
  return new StatusError("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED", message);
}
