// The table of OAuth apps: a project's own clients at providers. Their secrets are in the vault alone.
import { notFound, StatusError } from "#libs/errors.ts";
import { isAfter, type Page, type PageOf, pageOf } from "./pages.ts";
import type { AccountDatabase, OauthAppRow } from "./schema.ts";

export async function insertOauthApp(db: AccountDatabase, row: OauthAppRow): Promise<OauthAppRow> {
  return db.insertInto("oauthApps").values(row).returningAll().executeTakeFirstOrThrow();
}

export async function getOauthApp(db: AccountDatabase, projectId: string, id: string): Promise<OauthAppRow> {
  const row = await db
    .selectFrom("oauthApps")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .executeTakeFirst();
  if (row === undefined) throw notFound("OAuth app");
  return row;
}

/** The ids of all OAuth apps for one app. */
export async function listOauthAppIds(
  db: AccountDatabase,
  projectId: string,
  appSlug: string,
): Promise<readonly string[]> {
  const rows = await db
    .selectFrom("oauthApps")
    .select("id")
    .where("projectId", "=", projectId)
    .where("appSlug", "=", appSlug)
    .execute();
  return rows.map(({ id }) => id);
}

/** Deletes all OAuth apps for one app. */
export async function deleteOauthAppsOf(db: AccountDatabase, projectId: string, appSlug: string): Promise<void> {
  await db.deleteFrom("oauthApps").where("projectId", "=", projectId).where("appSlug", "=", appSlug).execute();
}

/** Keeps an OAuth app, or a user's own client, from being deleted until the transaction ends; false when it is gone. */
export async function holdOauthClient(tx: AccountDatabase, projectId: string, id: string): Promise<boolean> {
  const shared = tx.selectFrom("oauthApps").select("id").where("projectId", "=", projectId).where("id", "=", id);
  if ((await shared.forKeyShare().executeTakeFirst()) !== undefined) return true;
  const own = tx
    .selectFrom("ownOauthClients")
    .select("oauthAppId")
    .where("projectId", "=", projectId)
    .where("oauthAppId", "=", id);
  return (await own.forKeyShare().executeTakeFirst()) !== undefined;
}

/** Keeps others from changing, choosing or deleting it until the transaction ends; undefined when it is gone. */
export async function lockOauthApp(
  tx: AccountDatabase,
  { projectId, id }: Pick<OauthAppRow, "projectId" | "id">,
): Promise<OauthAppRow | undefined> {
  return tx
    .selectFrom("oauthApps")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .forUpdate()
    .executeTakeFirst();
}

/** What of an OAuth app can change. */
export type OauthAppChange = Partial<
  Pick<OauthAppRow, "clientId" | "name" | "description" | "scopes" | "additionalScopes">
>;

export async function updateOauthApp(
  db: AccountDatabase,
  { projectId, id }: Pick<OauthAppRow, "projectId" | "id">,
  change: OauthAppChange,
  time: Date,
): Promise<OauthAppRow> {
  return db
    .updateTable("oauthApps")
    .set({ ...change, updateTime: time })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

export async function deleteOauthApp(
  db: AccountDatabase,
  { projectId, id }: Pick<OauthAppRow, "projectId" | "id">,
): Promise<void> {
  await db.deleteFrom("oauthApps").where("projectId", "=", projectId).where("id", "=", id).execute();
}

/** The OAuth app to connect an app with: the one named, which must be of this app, else the project's newest. */
export async function chooseOauthApp(
  db: AccountDatabase,
  projectId: string,
  appSlug: string,
  id: string,
): Promise<OauthAppRow> {
  if (id !== "") {
    const named = await getOauthApp(db, projectId, id);
    if (named.appSlug !== appSlug) throw notFound("OAuth app");
    return named;
  }
  const newest = await db
    .selectFrom("oauthApps")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("appSlug", "=", appSlug)
    .orderBy("createTime", "desc")
    .orderBy("id", "desc")
    .limit(1)
    .executeTakeFirst();
  if (newest !== undefined) return newest;
  throw new StatusError(
    "FAILED_PRECONDITION",
    "OAUTH_APP_MISSING",
    `The project has no OAuth app for ${appSlug}: register a client at the provider and make one with CreateOauthApp.`,
  );
}

/** OAuth apps in the order in which they were made; an empty filter lets all through. */
export async function listOauthApps(
  db: AccountDatabase,
  filter: { readonly projectId: string; readonly appSlug: string; readonly query: string },
  page: Page,
): Promise<PageOf<OauthAppRow>> {
  let matching = db.selectFrom("oauthApps").where("projectId", "=", filter.projectId);
  if (filter.appSlug !== "") matching = matching.where("appSlug", "=", filter.appSlug);
  if (filter.query !== "") {
    matching = matching.where((where) =>
      where(where.fn("strpos", [where.fn("lower", ["name"]), where.val(filter.query.toLowerCase())]), ">", 0),
    );
  }
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

/** The slugs of the apps for which a project has OAuth apps, in order. */
export async function listAppsWithOauthApp(db: AccountDatabase, projectId: string): Promise<readonly string[]> {
  const rows = await db
    .selectFrom("oauthApps")
    .select("appSlug")
    .distinct()
    .where("projectId", "=", projectId)
    .orderBy("appSlug")
    .execute();
  return rows.map(({ appSlug }) => appSlug);
}
