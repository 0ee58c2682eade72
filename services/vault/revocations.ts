// The outbox of revocations: grants that the provider is still to be told about. The tokens lie sealed under a data key of
// the record's own, with the client that may revoke them, so that neither the account's nor the client's end is in the way.
// The row and its job are written in the transaction that destroys the credential.
import { type Selectable, sql } from "kysely";
import { newId } from "#libs/ids.ts";
import { insertRows } from "#libs/insert-rows.ts";
import { auditedAccount, changeAudited, insertAuditEntries, vaultItself } from "./audit-entries.ts";
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

const revocationEnd = {
  DONE: { action: "credential.revocation_done", actor: vaultItself },
  FAILED: { action: "credential.revocation_failed", actor: vaultItself },
} as const;

/** A row of the table. */
export type RevocationRow = Selectable<RevocationsTable> & { readonly expired: boolean; readonly readTime: Date };

/** Names one record. */
export type RevocationKey = Pick<RevocationsTable, "projectId" | "id">;

/** What is sealed in a row. */
export interface RevocationSecrets {
  readonly accessToken?: string;
  readonly refreshToken?: string;
  readonly client: OauthClient;
  /** For templated endpoints. */
  readonly fields: Readonly<Record<string, string>>;
}

/** A record that is sealed and not yet written. */
export type PreparedRevocation = RevocationSubject & {
  readonly id: string;
  readonly sealed: SealedColumns | undefined;
};

type Subject = Pick<CredentialRow, "projectId" | "environment" | "externalUserId" | "accountId" | "appSlug">;

/** Whose grant is to be revoked. */
export type RevocationSubject = Subject &
  Pick<CredentialRow, "oauthAppId" | "identityDigest"> & { readonly revokeSharedGrant?: boolean };

/** What a row's blob is bound to. */
export function revocationOwner(row: Subject & { readonly id: string }): SecretOwner {
  const { projectId, environment, externalUserId, id, appSlug } = row;
  return { purpose: "revocation", projectId, environment, externalUserId, id, appSlug };
}

/** Seals what is to be revoked. Without a value the record says that there was nothing left to revoke with. */
export async function prepareRevocation(
  secrets: Secrets,
  of: RevocationSubject,
  value: RevocationSecrets | undefined,
): Promise<PreparedRevocation> {
  const { projectId, environment, externalUserId, accountId, appSlug, oauthAppId, identityDigest } = of;
  const whose = { projectId, environment, externalUserId, accountId, appSlug, oauthAppId, identityDigest };
  const subject = { ...whose, revokeSharedGrant: of.revokeSharedGrant ?? false, id: newId("rev") };
  const owner = revocationOwner(subject);
  const sealed = value && sealWith(await secrets.prepare(owner), owner, 0n, value);
  return { ...subject, sealed };
}

/** Writes records and queues their jobs; call it in the transaction of the change that causes them. */
export async function insertRevocations(db: VaultDatabase, prepared: readonly PreparedRevocation[]): Promise<void> {
  if (prepared.length === 0) return;
  const unreadable = { ...wiped, state: "FAILED", lastError: "SECRET_UNREADABLE" } as const;
  const rows = prepared.map(({ sealed, ...subject }) => ({
    ...subject,
    ...(sealed ? { ...sealed, state: "PENDING" as const, lastError: "" } : unreadable),
  }));
  await insertRows(db, "revocations", rows, {
    expireTime: sql`now() + make_interval(days => ${revocationDays})`,
    completeTime: sql`case when state = 'FAILED' then now() end`,
  });
  const given = prepared.filter(({ sealed }) => sealed === undefined);
  const reason = "SECRET_UNREADABLE";
  await insertAuditEntries(
    db,
    ...given.map(({ id, appSlug, ...row }) => ({ ...revocationEnd.FAILED, ...row, reason })),
  );
  const jobs = prepared.filter(({ sealed }) => sealed).map(({ projectId, id }) => JSON.stringify({ projectId, id }));
  if (jobs.length === 0) return;
  await sql`
    select count(*) from graphile_worker.add_jobs(array(
      select row(${revokeTask}, payload, null, null, ${maxAttempts}, null, null, null)::graphile_worker.job_spec
      from unnest(${jobs}::json[]) as payload))`.execute(db);
}

/** Reads one record. */
export async function findRevocation(
  db: VaultDatabase,
  { projectId, id }: RevocationKey,
): Promise<RevocationRow | undefined> {
  return db
    .selectFrom("revocations")
    .selectAll()
    .select([sql<boolean>`expire_time <= now()`.as("expired"), sql<Date>`clock_timestamp()`.as("readTime")])
    .where("projectId", "=", projectId)
    .where("id", "=", id)
    .executeTakeFirst();
}

/** Ends a record that the provider has confirmed, by a call that began at that time, and wipes its tokens. */
export async function confirmRevocation(db: VaultDatabase, key: RevocationKey, toldTime: Date): Promise<void> {
  const change = ofKey(db, key)
    .set({ ...wiped, state: "DONE", toldTime, completeTime: sql<Date>`now()` })
    // Deferred while the call was under way: the provider has revoked it all the same.
    .where("state", "in", ["PENDING", "DEFERRED"])
    .returning(auditedAccount);
  await changeAudited(db, change, revocationEnd.DONE);
}

/** Gives a record up for good and wipes its tokens. */
export async function failRevocation(db: VaultDatabase, key: RevocationKey): Promise<void> {
  const change = ofKey(db, key)
    .set({ ...wiped, state: "FAILED", completeTime: sql<Date>`now()` })
    .where("state", "=", "PENDING")
    .returning(auditedAccount);
  await changeAudited(db, change, revocationEnd.FAILED);
}

/** Notes why an attempt failed, by a stable name. */
export async function noteRevocationError(db: VaultDatabase, key: RevocationKey, lastError: string): Promise<void> {
  await ofKey(db, key).set({ lastError }).execute();
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

function ofKey(db: VaultDatabase, { projectId, id }: RevocationKey) {
  return db.updateTable("revocations").where("projectId", "=", projectId).where("id", "=", id);
}
