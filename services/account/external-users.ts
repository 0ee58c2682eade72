// The table of users: the tenant's own id of somebody, kept from the first time it is named. The development environment is
// for trying things out and takes a limited number of them.
import { sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import { type Actor, allowedRows } from "./member-rights.ts";
import { isAfter, type Page, type PageOf, pageOf } from "./pages.ts";
import { lockProject } from "./projects.ts";
import type { AccountDatabase, EnvironmentNumber, ExternalUserRow } from "./schema.ts";

/** Names one user. */
export interface UserKey {
  readonly projectId: string;
  readonly environment: EnvironmentNumber;
  readonly externalUserId: string;
}

/** A user with the number of accounts that can be used, of those that the member who asks may see. */
export type CountedUser = ExternalUserRow & { readonly accountCount: number };

const development = 1;

/**
 * Makes the user known; once known, nothing changes. FAILED_PRECONDITION `USER_LIMIT_REACHED` when the development
 * environment has `developmentUsers` already; 0 is no limit.
 */
export async function ensureUser(
  db: AccountDatabase,
  user: UserKey,
  time: Date,
  developmentUsers: number,
): Promise<void> {
  if (user.environment !== development || developmentUsers === 0) {
    await insertUser(db, user, time, sql`true`);
    return;
  }
  if (await isKnown(db, user)) return;
  // A statement sees what was committed before it began, so the lock is taken by one and the users counted by the next.
  await inTransaction(db, async (tx) => {
    await lockProject(tx, user.projectId, "change");
    const hasRoom = sql<boolean>`(select count(*) from external_users
      where project_id = ${user.projectId} and environment = ${sql.lit(development)}) < ${developmentUsers}`;
    if ((await insertUser(tx, user, time, hasRoom)) || (await isKnown(tx, user))) return;
    throw userLimitReached(developmentUsers);
  });
}

/** Users in the order in which they were first named; an empty query lets all through. */
export async function listUsers(
  db: AccountDatabase,
  filter: { readonly projectId: string; readonly environment: number; readonly query: string; readonly actor?: Actor },
  page: Page,
): Promise<PageOf<CountedUser>> {
  let matching = db
    .selectFrom("externalUsers")
    .where("projectId", "=", filter.projectId)
    .where("environment", "=", filter.environment as EnvironmentNumber);
  if (filter.query !== "") {
    matching = matching.where(sql<boolean>`strpos(lower(external_user_id), ${filter.query.toLowerCase()}) > 0`);
  }
  const rows = matching
    .selectAll()
    // The first condition is what the partial index is made for.
    .select(
      sql<bigint>`(select count(*) from accounts
        where accounts.project_id = external_users.project_id and accounts.environment = external_users.environment
          and accounts.external_user_id = external_users.external_user_id
          and accounts.state <> 'REVOKED' and accounts.state = 'ACTIVE'
          and ${allowedRows({ actor: filter.actor, operation: "view" })})`.as("accountCount"),
    )
    .where(isAfter(page.after))
    .orderBy("createTime")
    .orderBy("id")
    .limit(page.size + 1);
  const count = matching.select((select) => select.fn.countAll<bigint>().as("count"));
  const [found, { count: total }] = await Promise.all([rows.execute(), count.executeTakeFirstOrThrow()]);
  const users = found.map((row) => ({ ...row, accountCount: Number(row.accountCount) }));
  return pageOf(users, page.size, Number(total));
}

/** Whether the user was made by this: not when it was known, nor when there is no room. */
async function insertUser(
  db: AccountDatabase,
  { projectId, environment, externalUserId }: UserKey,
  time: Date,
  hasRoom: ReturnType<typeof sql<boolean>>,
): Promise<boolean> {
  const { numAffectedRows } = await sql`
    insert into external_users (project_id, environment, external_user_id, id, create_time)
    select ${projectId}::text, ${environment}::smallint, ${externalUserId}::text, ${newId("exu")}::text, ${time}::timestamptz
    where ${hasRoom}
    on conflict do nothing`.execute(db);
  return numAffectedRows === 1n;
}

async function isKnown(db: AccountDatabase, { projectId, environment, externalUserId }: UserKey): Promise<boolean> {
  const row = await db
    .selectFrom("externalUsers")
    .select("id")
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .where("externalUserId", "=", externalUserId)
    .executeTakeFirst();
  return row !== undefined;
}

async function inTransaction(db: AccountDatabase, work: (tx: AccountDatabase) => Promise<void>): Promise<void> {
  await (db.isTransaction ? work(db) : db.transaction().execute(work));
}

function userLimitReached(limit: number): StatusError {
  // Clients know the first sentence.
  const message =
    "You've hit your limit on the number of external users you can connect. " +
    `The development environment of a project has room for ${limit}: delete users that are not needed any more, use the ` +
    "production environment, or have the operator raise DEPUTY_DEVELOPMENT_USERS.";
  return new StatusError("FAILED_PRECONDITION", "USER_LIMIT_REACHED", message, { metadata: { limit: String(limit) } });
}
