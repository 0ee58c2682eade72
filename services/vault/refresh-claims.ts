// The loop's statements: claim what is due, and note what cannot be worked on. A claim pushes the row's time forward in the
// statement that finds it, so that a process that dies with it gives it back by doing nothing.
import { type RawBuilder, sql } from "kysely";
import { type AuditedAccount, accountOf, insertAuditEntries, vaultItself } from "./audit-entries.ts";
import type { CredentialKey } from "./credentials.ts";
import { intentSeconds } from "./refresh-records.ts";
import type { VaultDatabase } from "./schema.ts";

/** A row that this process is to refresh. */
export interface Claim extends CredentialKey {
  readonly appSlug: string;
  readonly generation: bigint;
}

/** How many rows of an app may be claimed. */
export interface AppRoom {
  /** Of an app of the project's own; absent for one of the catalog. */
  readonly projectId?: string;
  readonly appSlug: string;
  readonly room: number;
}

// Longer than an attempt with its wait for the lock takes.
const claimSeconds = 60;

/**
 * Claims what is due, at most `limit` rows and of each app no more than there is room for, the longest due first. App by app,
 * so that a hundred thousand rows of a provider that hangs are not even looked at.
 */
export async function claimDue(db: VaultDatabase, rooms: readonly AppRoom[], limit: number): Promise<readonly Claim[]> {
  return (await claimStatement(rooms, limit).execute(db)).rows;
}

/** The statement of `claimDue`, to look at its plan. The rooms are of the catalog's apps, or all of own ones. */
export function claimStatement(rooms: readonly AppRoom[], limit: number): RawBuilder<Claim> {
  const slugs = rooms.map(({ appSlug }) => appSlug);
  const counts = rooms.map(({ room }) => room);
  const projects = rooms.map(({ projectId = "" }) => projectId);
  const isOwn = rooms.some(({ projectId }) => projectId !== undefined);
  const ofApp = isOwn
    ? sql`own_app and credentials.project_id = app.project_id and app_slug = app.slug`
    : sql`app_slug = app.slug`;
  // The states stand in the text, not in parameters: else Postgres could not tell that the partial index serves. And now(),
  // not clock_timestamp(), which may change while rows are read and so can be no bound of an index: every poll would read
  // through all that is not due.
  return sql<Claim>`
    with due as materialized (
      select found.project_id, found.account_id
      from unnest(${slugs}::text[], ${counts}::int[], ${projects}::text[]) as app (slug, room, project_id)
      cross join lateral (
        select credentials.project_id, account_id from credentials
        where ${ofApp} and state in ('ACTIVE', 'UNKNOWN') and next_refresh_time <= now()
          and (intent_time is null or intent_time < clock_timestamp() - make_interval(secs => ${intentSeconds}))
        order by next_refresh_time
        limit app.room
        for update skip locked
      ) as found
      limit ${limit}
    )
    update credentials as c
    set next_refresh_time = clock_timestamp() + make_interval(secs => ${claimSeconds})
    from due
    where c.project_id = due.project_id and c.account_id = due.account_id
    returning c.project_id, c.account_id, c.app_slug, c.generation`;
}

/** How often a row may fail by itself before it is left alone. */
export const mostFaults = 5;

/** Notes that the row could not be worked on at all. True when that was once too often, and the loop will not take it again. */
export async function noteFault(db: VaultDatabase, { projectId, accountId, generation }: Claim): Promise<boolean> {
  return db.transaction().execute(async (transaction) => {
    const { rows } = await sql<Required<AuditedAccount> & { readonly quarantined: boolean }>`
    update credentials
    set faults = faults + 1,
      next_refresh_time = case when faults + 1 >= ${mostFaults} then null
        else clock_timestamp() + make_interval(secs => 5 * power(2, faults)) end,
      state_reason = case when faults + 1 >= ${mostFaults} then 'QUARANTINED' else state_reason end
    where project_id = ${projectId} and account_id = ${accountId} and generation = ${generation}
      and state in ('ACTIVE', 'UNKNOWN')
    returning next_refresh_time is null as quarantined, project_id, environment, external_user_id, account_id`.execute(
      transaction,
    );
    const [row] = rows;
    if (!row?.quarantined) return false;
    const action = "credential.refresh_failed" as const;
    await insertAuditEntries(transaction, { action, actor: vaultItself, reason: "QUARANTINED", ...accountOf(row) });
    return true;
  });
}
