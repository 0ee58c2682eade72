// The guard against marking many accounts dead at once. A provider that errs can say `invalid_grant` to everybody, and each
// account so marked costs a person a new consent. So of one app's accounts in a project, only so many may be marked within
// some minutes; the others are kept, go on being tried, and wait for the provider to come to its senses or for the
// operator's word (the setting DEPUTY_REAUTH_UNGUARDED_APPS). Those that are kept count too: the guard does not wear off.
import { sql } from "kysely";
import type { CredentialRow } from "./credentials.ts";
import { type Intent, recordFailure } from "./refresh-records.ts";
import type { VaultDatabase } from "./schema.ts";

/** The reason that an account carries while the guard keeps it. */
export const heldReason = "BLAST_RADIUS_GUARD";

// One account in five, and never fewer than ten: a handful of users who leave on one day is no incident.
const share = 0.2;
const leastAccounts = 10;
const windowMinutes = 10;

/** What became of an account whose grant was refused. */
export type RefusalOutcome = "dead" | "held" | "moved";

/** Marks the account dead, or keeps it where too many would be. `moved`: the row has changed, and the refusal was a race. */
export async function recordRefusal(
  db: VaultDatabase,
  row: CredentialRow,
  intent: Intent,
  { reason, retrySeconds, guarded }: { reason: string; retrySeconds: number; guarded: boolean },
): Promise<RefusalOutcome> {
  return db.transaction().execute(async (transaction): Promise<RefusalOutcome> => {
    const isHeld = guarded && (await isTooMany(transaction, row));
    const failure = isHeld
      ? { state: row.state === "UNKNOWN" ? row.state : ("ACTIVE" as const), reason: heldReason, retrySeconds }
      : { state: "NEEDS_REAUTH" as const, reason };
    if (!(await recordFailure(transaction, row, intent, failure))) return "moved";
    return isHeld ? "held" : "dead";
  });
}

async function isTooMany(db: VaultDatabase, { projectId, appSlug, accountId }: CredentialRow): Promise<boolean> {
  // One after the other, over all processes: counted at the same time, each would be the last that may pass.
  await sql`select pg_advisory_xact_lock(hashtextextended(${`dead:${projectId}:${appSlug}`}, 0))`.execute(db);
  const { rows } = await sql<{ suspects: number }>`
    select (
      select count(*) from credentials
      where project_id = ${projectId} and app_slug = ${appSlug} and state = 'NEEDS_REAUTH'
        and state_reason <> 'NO_REFRESH_TOKEN'
        and update_time > clock_timestamp() - make_interval(mins => ${windowMinutes})
    )::int + (
      select count(*) from credentials
      where project_id = ${projectId} and app_slug = ${appSlug} and state_reason = 'BLAST_RADIUS_GUARD'
        and account_id <> ${accountId}
    )::int as suspects`.execute(db);
  const suspects = rows[0]?.suspects ?? 0;
  if (suspects < leastAccounts) return false;
  const { accounts } = await db
    .selectFrom("credentials")
    .select(sql<number>`count(*)::int`.as("accounts"))
    .where("projectId", "=", projectId)
    .where("appSlug", "=", appSlug)
    .where("state", "<>", "REVOKED")
    .executeTakeFirstOrThrow();
  return suspects >= accounts * share;
}
