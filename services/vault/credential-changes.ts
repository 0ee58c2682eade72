// The credentials that have changed, in an order that one can follow without missing any. The truth is the table of
// credentials itself: each row carries the id of the transaction that changed it last (a trigger writes it), so that nothing
// is noted twice, nothing has to be cleared away, and a credential that changes often is told once.
//
// Ids of transactions are given at the beginning and become visible in the order of the commits, so what is told are only
// rows of transactions older than every one that still runs: below that mark nothing new can appear. Whoever has read up to a
// place goes on from it and misses nothing; a place costs no row and no lock, whatever the number of refreshes.
//
// Without a place, and with one of the future (the database was put back from a backup), one goes through all rows by their
// keys first, and then through what has changed since that began. What is told twice is told as it is, and does no harm.
import { sql } from "kysely";
import { invalidField } from "#libs/errors.ts";
import type { CredentialRow } from "./credentials.ts";
import type { VaultDatabase } from "./schema.ts";

/** Where one has read up to: all rows up to a key, or changes up to one of a transaction's. */
interface Place {
  readonly kind: "all" | "changes";
  /** The transaction: when `all`, the one from which on changes are read afterwards. */
  readonly changeId: string;
  readonly projectId: string;
  readonly accountId: string;
}

/** Some changed credentials, and where to go on. */
export interface CredentialChanges {
  readonly rows: readonly ChangedCredential[];
  readonly nextPageToken: string;
}

type ChangedCredential = CredentialRow & { readonly changeId: string };

/** The next ones after a place. Without a token, from the beginning. */
export async function listCredentialChanges(
  db: VaultDatabase,
  pageToken: string,
  limit: number,
): Promise<CredentialChanges> {
  // Before the rows are read: what is committed after it is found by the next look.
  const { oldestRunning, next } = await readMarks(db);
  const given = pageToken === "" ? undefined : readToken(pageToken);
  const isKnown = given !== undefined && BigInt(given.changeId) <= BigInt(next);
  const place: Place = isKnown ? given : { kind: "all", changeId: oldestRunning, projectId: "", accountId: "" };
  const rows = await (place.kind === "all"
    ? listAfterKey(db, place, limit)
    : listAfter(db, place, oldestRunning, limit));
  const last = rows.at(-1);
  if (last === undefined || (place.kind === "all" && rows.length < limit)) {
    return { rows, nextPageToken: writeToken(place.kind === "all" ? startOf(place) : place) };
  }
  const { projectId, accountId } = last;
  const changeId = place.kind === "all" ? place.changeId : last.changeId;
  return { rows, nextPageToken: writeToken({ kind: place.kind, changeId, projectId, accountId }) };
}

function startOf({ changeId }: Place): Place {
  return { kind: "changes", changeId, projectId: "", accountId: "" };
}

async function readMarks(db: VaultDatabase): Promise<{ readonly oldestRunning: string; readonly next: string }> {
  const { rows } = await sql<{ oldestRunning: string; next: string }>`
    select pg_snapshot_xmin(now)::text as oldest_running, pg_snapshot_xmax(now)::text as next
    from pg_current_snapshot() as now`.execute(db);
  const [row] = rows;
  if (row === undefined) throw new Error("the database gave no snapshot");
  return row;
}

function listAfterKey(db: VaultDatabase, { projectId, accountId }: Place, limit: number) {
  return selectChanged(db)
    .where(sql<boolean>`(project_id, account_id) > (${projectId}, ${accountId})`)
    .orderBy("projectId")
    .orderBy("accountId")
    .limit(limit)
    .execute();
}

function listAfter(db: VaultDatabase, place: Place, oldestRunning: string, limit: number) {
  const { changeId, projectId, accountId } = place;
  return selectChanged(db)
    .where(sql<boolean>`(change_id, project_id, account_id) > (${changeId}::xid8, ${projectId}, ${accountId})`)
    .where(sql<boolean>`change_id < ${oldestRunning}::xid8`)
    .orderBy("changeId")
    .orderBy("projectId")
    .orderBy("accountId")
    .limit(limit)
    .execute();
}

function selectChanged(db: VaultDatabase) {
  return db.selectFrom("credentials").selectAll().select(sql<Date>`clock_timestamp()`.as("readTime"));
}

function writeToken({ kind, changeId, projectId, accountId }: Place): string {
  return Buffer.from(JSON.stringify([kind, changeId, projectId, accountId])).toString("base64url");
}

function readToken(token: string): Place {
  const [, kind, changeId, projectId, accountId] =
    /^\["(all|changes)","(\d{1,20})","([^"\\]*)","([^"\\]*)"\]$/.exec(Buffer.from(token, "base64url").toString()) ?? [];
  if ((kind !== "all" && kind !== "changes") || !changeId) {
    throw invalidField("page_token", "is not one that a list gave");
  }
  return { kind, changeId, projectId: projectId ?? "", accountId: accountId ?? "" };
}
