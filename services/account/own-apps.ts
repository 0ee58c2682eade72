// The table of the projects' own apps, and the catalog as one project sees it: the files of the deployment, and beside them what
// the project has defined itself. The table is read at each use, so that no process goes by an old definition; the catalog's
// files go before an own app of the same slug, which can be only where the file came later.
import { readDefinition } from "#libs/app-definition.ts";
import type { Catalog, CatalogApp } from "#libs/catalog.ts";
import { notFound, StatusError } from "#libs/errors.ts";
import type { AccountDatabase, OwnAppRow } from "./schema.ts";

/** The apps that a project can use. */
export type CatalogOf = (projectId: string) => Promise<Catalog>;

/** An app, and whether the project that it is shown to has defined it itself. */
export type KnownApp = CatalogApp & { readonly projectOwned?: true };

const mostOwnApps = 100;

/** Gives each project its catalog. */
export function catalogsOver(db: AccountDatabase, files: Catalog): CatalogOf {
  return async (projectId) => {
    const own = (await listOwnApps(db, projectId)).flatMap((row) => knownApp(row) ?? []);
    return own.length === 0 ? files : new Map([...own.map((app) => [app.slug, app] as const), ...files]);
  };
}

/** An own app as its project sees it; undefined when the schema of today does not take its definition any more. */
export function knownApp({ definition }: Pick<OwnAppRow, "definition">): KnownApp | undefined {
  const app = readDefinition(definition);
  return app && { ...app, projectOwned: true };
}

/** Adds an app. ALREADY_EXISTS when the project has one with this slug. */
export async function insertOwnApp(tx: AccountDatabase, row: OwnAppRow): Promise<void> {
  const { projectId, slug } = row;
  const others = await tx
    .selectFrom("ownApps")
    .select((select) => select.fn.countAll<bigint>().as("count"))
    .where("projectId", "=", projectId)
    .executeTakeFirstOrThrow();
  if (others.count >= mostOwnApps) {
    throw new StatusError(
      "RESOURCE_EXHAUSTED",
      "TOO_MANY_APPS",
      `A project has at most ${mostOwnApps} apps of its own.`,
    );
  }
  const { numInsertedOrUpdatedRows } = await tx
    .insertInto("ownApps")
    .values(row)
    .onConflict((conflict) => conflict.doNothing())
    .executeTakeFirst();
  if (numInsertedOrUpdatedRows !== 1n) throw appExists(`The project has an app with the slug ${slug}.`);
}

/** Why a slug is not free. */
export function appExists(message: string): StatusError {
  return new StatusError("ALREADY_EXISTS", "APP_ALREADY_EXISTS", message);
}

/** Reads an app and keeps others from changing it until the transaction ends. */
export async function lockOwnApp(tx: AccountDatabase, projectId: string, slug: string): Promise<OwnAppRow> {
  const row = await ownApp(tx, projectId, slug).forUpdate().executeTakeFirst();
  if (row === undefined) throw notFound("app");
  return row;
}

export async function updateOwnApp(
  tx: AccountDatabase,
  { projectId, slug, definition, updateTime }: Omit<OwnAppRow, "createTime">,
): Promise<void> {
  await tx
    .updateTable("ownApps")
    .set({ definition, updateTime })
    .where("projectId", "=", projectId)
    .where("slug", "=", slug)
    .execute();
}

export async function deleteOwnApp(tx: AccountDatabase, projectId: string, slug: string): Promise<void> {
  await tx.deleteFrom("ownApps").where("projectId", "=", projectId).where("slug", "=", slug).execute();
}

async function listOwnApps(db: AccountDatabase, projectId: string): Promise<readonly OwnAppRow[]> {
  return db.selectFrom("ownApps").selectAll().where("projectId", "=", projectId).execute();
}

function ownApp(db: AccountDatabase, projectId: string, slug: string) {
  return db.selectFrom("ownApps").selectAll().where("projectId", "=", projectId).where("slug", "=", slug);
}
