// The table of app overrides: what an administrator has filled in for an app before its users are asked, under a name that is
// unique in the project.
import type { Selectable } from "kysely";
import { isUniqueViolation } from "#libs/database.ts";
import { invalidField, notFound } from "#libs/errors.ts";
import { isAfter, type Page, type PageOf, pageOf } from "./pages.ts";
import type { AccountDatabase, AppOverrideRow } from "./schema.ts";

/** An app override as it is read. */
export type AppOverride = Selectable<AppOverrideRow>;

/** Names one app override. */
export type AppOverrideKey = Pick<AppOverride, "projectId" | "id">;

export async function insertAppOverride(db: AccountDatabase, { fields, ...row }: AppOverride): Promise<AppOverride> {
  return refusingTakenName(
    db
      .insertInto("appOverrides")
      .values({ ...row, fields: JSON.stringify(fields) })
      .returningAll()
      .executeTakeFirstOrThrow(),
  );
}

export async function getAppOverride(db: AccountDatabase, { projectId, id }: AppOverrideKey): Promise<AppOverride> {
  const row = await selectAppOverride(db, { projectId, id }).executeTakeFirst();
  if (row === undefined) throw notFound("app override");
  return row;
}

/** The same, and nobody changes it until the transaction ends. */
export async function lockAppOverride(tx: AccountDatabase, key: AppOverrideKey): Promise<AppOverride> {
  const row = await selectAppOverride(tx, key).forUpdate().executeTakeFirst();
  if (row === undefined) throw notFound("app override");
  return row;
}

/** Writes all that can change of it. */
export async function updateAppOverride(
  db: AccountDatabase,
  { projectId, id, name, oauthAppId, fields, updateTime }: AppOverride,
): Promise<AppOverride> {
  return refusingTakenName(
    db
      .updateTable("appOverrides")
      .set({ name, oauthAppId, fields: JSON.stringify(fields), updateTime })
      .where("projectId", "=", projectId)
      .where("id", "=", id)
      .returningAll()
      .executeTakeFirstOrThrow(),
  );
}

export async function deleteAppOverride(db: AccountDatabase, { projectId, id }: AppOverrideKey): Promise<void> {
  await db.deleteFrom("appOverrides").where("projectId", "=", projectId).where("id", "=", id).execute();
}

/** App overrides in the order in which they were made; an empty app lets all through. */
export async function listAppOverrides(
  db: AccountDatabase,
  filter: { readonly projectId: string; readonly appSlug: string },
  page: Page,
): Promise<PageOf<AppOverride>> {
  let matching = db.selectFrom("appOverrides").where("projectId", "=", filter.projectId);
  if (filter.appSlug !== "") matching = matching.where("appSlug", "=", filter.appSlug);
  const rows = matching
    .selectAll()
    .where(isAfter(page.after))
    .orderBy("createTime")
    .orderBy("id")
    .limit(page.size + 1);
  const count = matching.select((select) => select.fn.countAll<bigint>().as("count"));
  const [found, { count: total }] = await Promise.all([rows.execute(), count.executeTakeFirstOrThrow()]);
  return pageOf(found, page.size, Number(total));
}

/** How many choose this OAuth app. */
export async function countOverridesWith(
  db: AccountDatabase,
  { projectId, id }: { readonly projectId: string; readonly id: string },
): Promise<number> {
  const { count } = await db
    .selectFrom("appOverrides")
    .select((select) => select.fn.countAll<bigint>().as("count"))
    .where("projectId", "=", projectId)
    .where("oauthAppId", "=", id)
    .executeTakeFirstOrThrow();
  return Number(count);
}

function selectAppOverride(db: AccountDatabase, { projectId, id }: AppOverrideKey) {
  return db.selectFrom("appOverrides").selectAll().where("projectId", "=", projectId).where("id", "=", id);
}

async function refusingTakenName<T>(write: Promise<T>): Promise<T> {
  return write.catch((error) => {
    if (!isUniqueViolation(error, "app_overrides_by_name")) throw error;
    throw invalidField("name", "is the name of another app override");
  });
}

/** Deletes all app overrides of one app. */
export async function deleteAppOverridesOf(db: AccountDatabase, projectId: string, appSlug: string): Promise<void> {
  await db.deleteFrom("appOverrides").where("projectId", "=", projectId).where("appSlug", "=", appSlug).execute();
}
