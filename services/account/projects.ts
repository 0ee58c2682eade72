// The table of tenants. A project that is deleted stays as a row with its delete_time, for the tombstones and the audit that
// outlive it, and counts as absent here. What is made in a project holds its row while it does so (`holdProject`), and what
// deletes one waits for that: nothing can appear in a project that is gone.
import { sql } from "kysely";
import { notFound } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import { isAfter, type Page, type PageOf, pageOf } from "./pages.ts";
import type { AccountDatabase, ProjectRow, Told } from "./schema.ts";

/** What the owner of a project can say of it. */
export type ProjectSettings = Pick<ProjectRow, "name" | "appName" | "supportEmail" | "requireKeyAuthTest">;

export async function insertProject(db: AccountDatabase, project: ProjectSettings, time: Date): Promise<ProjectRow> {
  const row = { ...project, id: newId("proj"), createTime: time, updateTime: time, deleteTime: null };
  return db.insertInto("projects").values(row).returningAll().executeTakeFirstOrThrow();
}

export async function getProject(db: AccountDatabase, id: string): Promise<ProjectRow> {
  const row = await livingProject(db, id).selectAll().executeTakeFirst();
  if (row === undefined) throw notFound("project");
  return row;
}

/** Keeps the project from being deleted until the transaction ends; NOT_FOUND when it has been. */
export async function holdProject(tx: AccountDatabase, id: string): Promise<void> {
  const row = await livingProject(tx, id).select("id").forKeyShare().executeTakeFirst();
  if (row === undefined) throw notFound("project");
}

/** Keeps other changes of the project waiting until the transaction ends; for its deletion, whatever is made in it too. */
export async function lockProject(tx: AccountDatabase, id: string, aim: "change" | "deletion"): Promise<ProjectRow> {
  const project = livingProject(tx, id).selectAll();
  const locked = aim === "deletion" ? project.forUpdate() : project.forNoKeyUpdate();
  const row = await locked.executeTakeFirst();
  if (row === undefined) throw notFound("project");
  return row;
}

/** Projects in the order in which they were made; an empty filter lets all through. */
export async function listProjects(
  db: AccountDatabase,
  { id, query }: { readonly id: string; readonly query: string },
  page: Page,
): Promise<PageOf<ProjectRow>> {
  let matching = db.selectFrom("projects").where("deleteTime", "is", null);
  if (id !== "") matching = matching.where("id", "=", id);
  if (query !== "") matching = matching.where(sql<boolean>`strpos(lower(name), ${query.toLowerCase()}) > 0`);
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

/** Changes what is given. Call it with the project locked. */
export async function updateProject(
  tx: AccountDatabase,
  id: string,
  change: Partial<ProjectSettings> & { readonly deleteTime?: Date },
  time: Date,
): Promise<ProjectRow> {
  return tx
    .updateTable("projects")
    .set({ ...change, updateTime: time })
    .where("id", "=", id)
    .returningAll()
    .executeTakeFirstOrThrow();
}

/** What the audit tells of a project. */
export function toldOfProject({ name, appName, supportEmail, requireKeyAuthTest }: ProjectSettings): Told {
  return { name, appName, supportEmail, requireKeyAuthTest };
}

function livingProject(db: AccountDatabase, id: string) {
  return db.selectFrom("projects").where("id", "=", id).where("deleteTime", "is", null);
}
