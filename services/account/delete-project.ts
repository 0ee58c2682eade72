// DeleteProject. What could act for the project ends with it, in one transaction: its clients and its connect tokens, and its
// users are forgotten. From its commit on nobody can reach or make anything in the project. What has to be ended step by step,
// most of it at the vault, follows (project-remains.ts); when that breaks off a repeat takes it up. What stays: tombstones and
// receipts of its accounts, its audit, its events.
import { sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import { endConnectTokens } from "./connect-tokens.ts";
import { type HandlerGroup, ownRight } from "./handler-group.ts";
import { endRemains, hasRemains, type Remaining } from "./project-remains.ts";
import { lockProject, toldOfProject, updateProject } from "./projects.ts";
import type { AccountDatabase } from "./schema.ts";

export function deleteProjectHandler({ db, vault }: Remaining, now: () => number): HandlerGroup<"deleteProject"> {
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
      await endRemains({ db, vault }, projectId, { time: new Date(now()), options: ownRight(call) });
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

// What is the project's alone and of no use without it.
const belongings = ["apiClients", "externalUsers", "appOverrides"] as const;

async function endRights(tx: AccountDatabase, projectId: string, time: Date): Promise<void> {
  for (const table of belongings) await tx.deleteFrom(table).where("projectId", "=", projectId).execute();
  for (const environment of [1, 2] as const) {
    await endConnectTokens(tx, { projectId, environment, externalUserId: "" }, time);
  }
}

/** Whether the project is deleted and something of it is left. */
async function isInterrupted(db: AccountDatabase, projectId: string): Promise<boolean> {
  const row = await db
    .selectFrom("projects")
    .select("id")
    .where("id", "=", projectId)
    .where("deleteTime", "is not", null)
    .executeTakeFirst();
  return row !== undefined && (await hasRemains(db, projectId));
}

function projectInUse(count: bigint): StatusError {
  const accounts = count === 1n ? "an account that is" : `${count} accounts that are`;
  const message = `The project has ${accounts} not revoked: revoke them first, with RevokeAllAccounts in both environments.`;
  return new StatusError("FAILED_PRECONDITION", "PROJECT_IN_USE", message, { metadata: { count: String(count) } });
}
