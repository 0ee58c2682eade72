// The outbox of revocations: grants that the provider is still to be told about. The tokens lie sealed under a data key of
// the record's own, with the client that may revoke them, so that neither the account's nor the client's end is in the way.
// The row and its job are written in the transaction that destroys the credential.
import { type Selectable, sql } from "kysely";
import { newId } from "#libs/ids.ts";
import type { CredentialRow } from "./credentials.ts";
import type { OauthClient } from "./oauth-clients.ts";
import type { RevocationsTable, VaultDatabase } from "./schema.ts";
import { type SealedColumns, type SecretOwner, type Secrets, sealWith, wiped } from "./secrets.ts";

/** The name of the job. */
export const revokeTask = "revoke_at_provider";

/** For how long the provider is asked, before the user has to be told. */
const revocationDays = 7;

// The queue waits e^n seconds after the n-th attempt, at most six hours: 40 attempts last longer than the seven days.
const maxAttempts = 40;

/** A row of the table. */
export type RevocationRow = Selectable<RevocationsTable> & { readonly expired: boolean };

/** What is sealed in a row. */
export interface RevocationSecrets {
  readonly accessToken?: string;
  readonly refreshToken?: string;
  readonly client: OauthClient;
  /** For templated endpoints. */
  readonly fields: Readonly<Record<string, string>>;
}

/** A record that is sealed and not yet written. */
export type PreparedRevocation = Subject & { readonly id: string; readonly sealed: SealedColumns | undefined };

type Subject = Pick<CredentialRow, "projectId" | "environment" | "externalUserId" | "accountId" | "appSlug">;

/** What a row's blob is bound to. */
export function revocationOwner(row: Subject & { readonly id: string }): SecretOwner {
  const { projectId, environment, externalUserId, id, appSlug } = row;
  return { purpose: "revocation", projectId, environment, externalUserId, id, appSlug };
}

/** Seals what is to be revoked. Without a value the record says that there was nothing left to revoke with. */
export async function prepareRevocation(
  secrets: Secrets,
  { projectId, environment, externalUserId, accountId, appSlug }: Subject,
  value: RevocationSecrets | undefined,
): Promise<PreparedRevocation> {
  const subject = { projectId, environment, externalUserId, accountId, appSlug, id: newId("rev") };
  const owner = revocationOwner(subject);
  const sealed = value && sealWith(await secrets.prepare(owner), owner, 0n, value);
  return { ...subject, sealed };
}

/** Writes the record and queues its job; call it in the transaction of the change that causes it. */
export async function insertRevocation(db: VaultDatabase, { sealed, ...subject }: PreparedRevocation): Promise<void> {
  const outcome = sealed
    ? { ...sealed, state: "PENDING" as const }
    : { state: "FAILED" as const, lastError: "SECRET_UNREADABLE", completeTime: sql<Date>`now()` };
  await db
    .insertInto("revocations")
    .values({ ...subject, ...outcome, expireTime: sql<Date>`now() + make_interval(days => ${revocationDays})` })
    .execute();
  if (sealed === undefined) return;
  const payload = JSON.stringify({ projectId: subject.projectId, id: subject.id });
  await sql`select graphile_worker.add_job(${revokeTask}, ${payload}::json, max_attempts => ${maxAttempts}::int)`.execute(
    db,
  );
}

/** Reads one record. */
export async function findRevocation(
  db: VaultDatabase,
  { projectId, id }: Pick<RevocationsTable, "projectId" | "id">,
): Promise<RevocationRow | undefined> {
  return db
    .selectFrom("revocations")
    .selectAll()
    .select(sql<boolean>`expire_time <= now()`.as("expired"))
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .executeTakeFirst();
}

/** The newest outcome for each account that has one. */
export async function listRevocationStates(
  db: VaultDatabase,
  projectId: string,
  accountIds: readonly string[],
): Promise<ReadonlyMap<string, RevocationsTable["state"]>> {
  const rows = await db
    .selectFrom("revocations")
    .select(["accountId", "state"])
    .where("projectId", "=", projectId)
    .where("accountId", "=", sql<string>`any(${accountIds})`)
    .orderBy("createTime")
    .execute();
  return new Map(rows.map(({ accountId, state }) => [accountId, state]));
}

/** Ends a record and wipes its tokens. */
export async function completeRevocation(
  db: VaultDatabase,
  { projectId, id }: Pick<RevocationsTable, "projectId" | "id">,
  state: "DONE" | "FAILED",
): Promise<void> {
  await db
    .updateTable("revocations")
    .set({ ...wiped, state, completeTime: sql<Date>`now()` })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .where("state", "=", "PENDING")
    .execute();
}

/** Notes why an attempt failed, by a stable name. */
export async function noteRevocationError(
  db: VaultDatabase,
  { projectId, id }: Pick<RevocationsTable, "projectId" | "id">,
  lastError: string,
): Promise<void> {
  await db
    .updateTable("revocations")
    .set({ lastError })
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .execute();
}

/** How many providers are still to be told, over all projects, and the database's time. */
export async function countPendingRevocations(db: VaultDatabase): Promise<{ count: bigint; time: Date }> {
  return db
    .selectFrom("revocations")
    .select((eb) => eb.fn.countAll<bigint>().as("count"))
    .select(sql<Date>`now()`.as("time"))
    .where("state", "=", "PENDING")
    .executeTakeFirstOrThrow();
}
