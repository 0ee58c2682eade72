// The tables of tenants and of their users. A user is the tenant's own id of somebody, kept from the first time it is named.
import { notFound } from "#libs/errors.ts";
import { newId } from "#libs/ids.ts";
import type { AccountDatabase, EnvironmentNumber, ProjectRow } from "./schema.ts";

export async function insertProject(
  db: AccountDatabase,
  project: Pick<ProjectRow, "name" | "appName" | "supportEmail" | "requireKeyAuthTest">,
  time: Date,
): Promise<ProjectRow> {
  const row = { ...project, id: newId("proj"), createTime: time, updateTime: time };
  return db.insertInto("projects").values(row).returningAll().executeTakeFirstOrThrow();
}

export async function getProject(db: AccountDatabase, id: string): Promise<ProjectRow> {
  const row = await db.selectFrom("projects").selectAll().where("id", "=", id).executeTakeFirst();
  if (row === undefined) throw notFound("project");
  return row;
}

/** Makes the user known. Once known, nothing changes. */
export async function ensureUser(
  db: AccountDatabase,
  user: { projectId: string; environment: EnvironmentNumber; externalUserId: string },
  time: Date,
): Promise<void> {
  await db
    .insertInto("externalUsers")
    .values({
      projectId: user.projectId,
      environment: user.environment,
      externalUserId: user.externalUserId,
      id: newId("exu"),
      createTime: time,
    })
    .onConflict((conflict) => conflict.doNothing())
    .execute();
}
