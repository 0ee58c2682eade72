// The table of the projects' own apps, and the one way to an app: the catalog's files first, then the project's own. The table
// is read at each use, so a change holds in every vault process from its commit on; only the reading of a text is remembered
// (app-definition.ts). A row stays when its app has ended: what is still to be revoked at the provider needs its endpoints.
import { type Selectable, sql } from "kysely";
import { readDefinition } from "#libs/app-definition.ts";
import type { Catalog, CatalogApp } from "#libs/catalog.ts";
import { type Actor, insertAuditEntries } from "./audit-entries.ts";
import { insertInvalidations } from "./lease-invalidations.ts";
import type { OwnAppsTable, VaultDatabase } from "./schema.ts";

/** Where apps are looked for. */
export interface AppSource {
  readonly db: VaultDatabase;
  readonly catalog: Catalog;
}

/** Names an app as one project sees it. */
export interface AppKey {
  readonly projectId: string;
  readonly appSlug: string;
}

/** The app that this project means by a slug; undefined when there is none, or it has ended. */
export async function findApp({ db, catalog }: AppSource, key: AppKey): Promise<CatalogApp | undefined> {
  const listed = catalog.get(key.appSlug);
  if (listed !== undefined) return listed;
  const row = await selectOwnApp(db, key).executeTakeFirst();
  return row === undefined || row.destroyTime !== null ? undefined : readDefinition(row.definition);
}

/** The same, ended or not: for what remains to be revoked. */
export async function findAnyApp({ db, catalog }: AppSource, key: AppKey): Promise<CatalogApp | undefined> {
  const listed = catalog.get(key.appSlug);
  if (listed !== undefined) return listed;
  const row = await selectOwnApp(db, key).executeTakeFirst();
  return row && readDefinition(row.definition);
}

/** The slugs of a project's own apps at whose providers a revocation ends all of a user's grants, ended apps too. */
export async function listUserClientSlugs(db: VaultDatabase, projectId: string): Promise<readonly string[]> {
  const rows = await db
    .selectFrom("ownApps")
    .select("slug")
    .where("projectId", "=", projectId)
    .where("revokeEffect", "=", "user_client")
    .execute();
  return rows.map(({ slug }) => slug);
}

/** Keeps an own app from ending before the transaction does; false when it has ended. */
export async function holdOwnApp(transaction: VaultDatabase, key: AppKey): Promise<boolean> {
  return (
    (await selectOwnApp(transaction, key).where("destroyTime", "is", null).forShare().executeTakeFirst()) !== undefined
  );
}

/** Puts an app or its new definition. Gives the accounts whose leases it ended: those of the definition before. */
export async function putOwnApp(
  db: VaultDatabase,
  projectId: string,
  { app, definition, actor }: { readonly app: CatalogApp; readonly definition: string; readonly actor: Actor },
): Promise<readonly string[]> {
  const key = { projectId, appSlug: app.slug };
  const columns = {
    definition,
    isOauth: app.oauth2 !== undefined,
    revokeEffect: app.lifecycle.revoke_effect,
    updateTime: sql<Date>`now()`,
    destroyTime: null,
  };
  return db.transaction().execute(async (transaction) => {
    await transaction
      .insertInto("ownApps")
      .values({ projectId, slug: app.slug, ...columns })
      .onConflict((conflict) => conflict.columns(["projectId", "slug"]).doUpdateSet(columns))
      .execute();
    await insertAuditEntries(transaction, { action: "app.put", actor, projectId, accountId: app.slug });
    return endLeases(transaction, key);
  });
}

/** Ends an app. A repeat, or an app that is not there, changes nothing. Gives the accounts whose leases it ended. */
export async function destroyOwnApp(db: VaultDatabase, key: AppKey, actor: Actor): Promise<readonly string[]> {
  const { projectId, appSlug } = key;
  return db.transaction().execute(async (transaction) => {
    const { numUpdatedRows } = await transaction
      .updateTable("ownApps")
      .set({ destroyTime: sql<Date>`now()`, updateTime: sql<Date>`now()` })
      .where("projectId", "=", projectId)
      .where("slug", "=", appSlug)
      .where("destroyTime", "is", null)
      .executeTakeFirst();
    if (numUpdatedRows === 0n) return [];
    await insertAuditEntries(transaction, { action: "app.destroyed", actor, projectId, accountId: appSlug });
    return endLeases(transaction, key);
  });
}

async function endLeases(transaction: VaultDatabase, { projectId, appSlug }: AppKey): Promise<readonly string[]> {
  const rows = await transaction
    .selectFrom("credentials")
    .select("accountId")
    .where("projectId", "=", projectId)
    .where("appSlug", "=", appSlug)
    .where("state", "<>", "REVOKED")
    .execute();
  const accountIds = rows.map(({ accountId }) => accountId);
  await insertInvalidations(transaction, { projectId, accountIds }, "CHANGED");
  return accountIds;
}

/** A row of the table. */
export type OwnAppRow = Selectable<OwnAppsTable>;

function selectOwnApp(db: VaultDatabase, { projectId, appSlug }: AppKey) {
  return db.selectFrom("ownApps").selectAll().where("projectId", "=", projectId).where("slug", "=", appSlug);
}
