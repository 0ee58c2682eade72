// DeleteProject. What could act for the project ends with it, in one transaction: its clients, its connect tokens, connections
// that are under way. Its users are forgotten. Its OAuth apps follow, secrets in the vault first; when that fails a repeat takes
// it up, and meanwhile nobody can reach them. What stays: tombstones and receipts of its accounts, its audit, its events.
import { sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import { type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { lockProject, toldOfProject, updateProject } from "./projects.ts";
import type { AccountDatabase } from "./schema.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "destroyOauthClient">;
}

export function deleteProjectHandler({ db, vault }: Collaborators, now: () => number): HandlerGroup<"deleteProject"> {
  async function end(tx: AccountDatabase, projectId: string, call: Call): Promise<void> {
    const project = await lockProject(tx, projectId, "deletion");
    const count = await countAccounts(tx, projectId);
    if (count > 0n) throw projectInUse(count);
    const time = new Date(now());
    await updateProject(tx, projectId, { deleteTime: time }, time);
    await endRights(tx, projectId, time);
    const entry = { projectId, action: "DeleteProject", resourceId: projectId, before: toldOfProject(project) };
    await insertAuditEntries(tx, call, time, entry);
  }

  return {
    async deleteProject({ projectId }, call) {
      const isDeleted = await isInterrupted(db, projectId);
      if (!isDeleted) await db.transaction().execute((tx) => end(tx, projectId, call));
      for (const oauthAppId of await oauthAppsOf(db, projectId)) {
        await vault.destroyOauthClient({ projectId, oauthAppId }, ownRight(call));
        await db.deleteFrom("oauthApps").where("projectId", "=", projectId).where("id", "=", oauthAppId).execute();
      }
      return {};
    },
  };
}

/** Accounts in both environments whose credentials are or may be there. */
async function countAccounts(tx: AccountDatabase, projectId: string): Promise<bigint> {
  const { count } = await tx
    .selectFrom("accounts")
    .select((select) => select.fn.countAll<bigint>().as("count"))
    .where("projectId", "=", projectId)
    .where("state", "<>", sql.lit("REVOKED"))
    .executeTakeFirstOrThrow();
  return count;
}

// What is the project's alone and of no use without it. OAuth apps come later: the vault has their secrets.
const belongings = ["apiClients", "externalUsers", "appOverrides"] as const;

async function endRights(tx: AccountDatabase, projectId: string, time: Date): Promise<void> {
  for (const table of belongings) await tx.deleteFrom(table).where("projectId", "=", projectId).execute();
  await tx
    .updateTable("connectTokens")
    .set({ expireTime: time })
    .where("projectId", "=", projectId)
    .where("expireTime", ">", time)
    .execute();
  await tx
    .updateTable("connections")
    .set({ state: "FAILED", error: "The project was deleted." })
    .where("projectId", "=", projectId)
    .where("state", "=", "PENDING")
    .execute();
}

/** Whether the project is deleted and has OAuth apps left. */
async function isInterrupted(db: AccountDatabase, projectId: string): Promise<boolean> {
  const row = await db
    .selectFrom("projects")
    .innerJoin("oauthApps", "oauthApps.projectId", "projects.id")
    .select("projects.id")
    .where("projects.id", "=", projectId)
    .where("projects.deleteTime", "is not", null)
    .limit(1)
    .executeTakeFirst();
  return row !== undefined;
}

async function oauthAppsOf(db: AccountDatabase, projectId: string): Promise<readonly string[]> {
  const rows = await db.selectFrom("oauthApps").select("id").where("projectId", "=", projectId).execute();
  return rows.map(({ id }) => id);
}

function projectInUse(count: bigint): StatusError {
  const accounts = count === 1n ? "an account that is" : `${count} accounts that are`;
  const message = `The project has ${accounts} not revoked: revoke them first, with RevokeAllAccounts in both environments.`;
  return new StatusError("FAILED_PRECONDITION", "PROJECT_IN_USE", message, { metadata: { count: String(count) } });
}
