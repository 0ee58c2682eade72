// Pages of a list by key: a page token holds the place of the last row, so that a page costs the same wherever it is, and
// rows that come or go meanwhile neither repeat nor hide others. Opaque to callers, and worth nothing: no right is in it.
import { type Expression, type SqlBool, sql } from "kysely";
import { invalidField } from "#libs/errors.ts";

/** Where a page ended: lists are in the order of these two. */
export interface PageKey {
  readonly createTime: Date;
  readonly id: string;
}

/** Which page is asked for. */
export interface Page {
  readonly size: number;
  readonly after: PageKey | undefined;
}

/** One page of rows. */
export interface PageOf<Row> {
  readonly rows: readonly Row[];
  /** Empty on the last page. */
  readonly nextPageToken: string;
  readonly totalSize: number;
}

const defaultPageSize = 100;

/** The page that a request asks for. */
export function requestedPage({ pageSize, pageToken }: { pageSize: number; pageToken: string }): Page {
  return { size: pageSize || defaultPageSize, after: pageToken === "" ? undefined : readPageToken(pageToken) };
}

/** Holds for rows that come after a key in the order of lists; for all without one. */
export function isAfter(after: PageKey | undefined): Expression<SqlBool> {
  return after === undefined ? sql`true` : sql`(create_time, id) > (${after.createTime}, ${after.id})`;
}

/** Holds for rows that come after a key in a list that begins with the newest; for all without one. */
export function isBefore(after: PageKey | undefined): Expression<SqlBool> {
  return after === undefined ? sql`true` : sql`(create_time, id) < (${after.createTime}, ${after.id})`;
}

/** Makes a page of what was found by asking for one row more than the page has. */
export function pageOf<Row extends PageKey>(found: readonly Row[], size: number, totalSize: number): PageOf<Row> {
  const rows = found.slice(0, size);
  const last = rows.at(-1);
  const nextPageToken = found.length > size && last !== undefined ? writePageToken(last) : "";
  return { rows, nextPageToken, totalSize };
}

function writePageToken({ createTime, id }: PageKey): string {
  return Buffer.from(`${createTime.getTime()} ${id}`).toString("base64url");
}

function readPageToken(token: string): PageKey {
  const [, time, id] = /^(\d{1,15}) (\w{1,64})$/.exec(Buffer.from(token, "base64url").toString()) ?? [];
  if (time === undefined || id === undefined) throw invalidField("page_token", "is not one that a list gave");
  return { createTime: new Date(Number(time)), id };
}
