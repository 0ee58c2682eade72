// The outbox of revocations: grants that the provider is still to be told about. The row and its job are written in the
// transaction that destroys the credential, and the account's end is not in the way of either.
//
// A record holds one of two things. What a destroyed credential held, taken over as it lay there, so that destroying asks for no
// key; its client is the one that the project has. Or tokens that were never kept, or whose client or user goes (sealed-anew.ts):
// sealed under a data key of the record's own, with the client.
import { type Selectable, sql } from "kysely";
import { newId } from "#libs/ids.ts";
import { auditedAccount, changeAudited, insertAuditEntriesOf, vaultItself } from "./audit-entries.ts";
import { type CredentialMaterial, type CredentialRow, credentialOwner } from "./credentials.ts";
import type { OauthClient } from "./oauth-clients.ts";
import type { RevocationsTable, VaultDatabase } from "./schema.ts";
import { type SealedColumns, type SecretOwner, type Secrets, sealWith, wiped } from "./secrets.ts";

/** The name of the job. */
export const revokeTask = "revoke_at_provider";

/** For how long the provider is asked, before the user has to be told. */
const revocationDays = 7;

// The queue waits e^n seconds after the n-th attempt, at most six hours: 40 attempts last longer than the seven days.
const maxAttempts = 40;

/** Why a record fails whose project has no OAuth client for it. */
export const clientMissing = "OAUTH_CLIENT_MISSING";

const revocationEnd = {
  DONE: { action: "credential.revocation_done", actor: vaultItself },
  FAILED: { action: "credential.revocation_failed", actor: vaultItself },
} as const;

/** A row of the table. */
export type RevocationRow = Selectable<RevocationsTable> & { readonly expired: boolean; readonly readTime: Date };

/** Names one record. */
export type RevocationKey = Pick<RevocationsTable, "projectId" | "id">;

/** What is sealed in a record of its own; the fields are for templated endpoints. */
export interface RevocationSecrets extends CredentialMaterial {
  readonly client: OauthClient;
}

/** A record that is sealed and not yet written. */
export type PreparedRevocation = RevocationSubject & { readonly id: string; readonly sealed: SealedColumns };

type Subject = Pick<CredentialRow, "projectId" | "environment" | "externalUserId" | "accountId" | "appSlug">;

/** Whose grant is to be revoked. */
export type RevocationSubject = Subject &
  Pick<CredentialRow, "oauthAppId" | "identityDigest"> & { readonly revokeSharedGrant?: boolean };

/** What a row's blob is bound to. */
export function revocationOwner(row: Subject & { readonly id: string }): SecretOwner {
  const { projectId, environment, externalUserId, id, appSlug } = row;
  return { purpose: "revocation", projectId, environment, externalUserId, id, appSlug };
}

/** Opens what a record holds; without a client where it was taken over. DATA_LOSS when it does not open. */
export async function openRevocation(
  secrets: Secrets,
  row: Omit<RevocationRow, "expired" | "readTime">,
): Promise<CredentialMaterial & Partial<RevocationSecrets>> {
  const { credentialGeneration: generation } = row;
  if (generation !== null) return secrets.open<CredentialMaterial>(credentialOwner(row), { ...row, generation });
  return secrets.open<RevocationSecrets>(revocationOwner(row), { ...row, generation: 0n });
}

/** Seals what is to be revoked. */
export async function prepareRevocation(
  secrets: Secrets,
  of: RevocationSubject,
  value: RevocationSecrets,
): Promise<PreparedRevocation> {
  const { projectId, environment, externalUserId, accountId, appSlug, oauthAppId, identityDigest } = of;
  const whose = { projectId, environment, externalUserId, accountId, appSlug, oauthAppId, identityDigest };
  const subject = { ...whose, revokeSharedGrant: of.revokeSharedGrant ?? false, id: newId("rev") };
  const owner = revocationOwner(subject);
  return { ...subject, sealed: sealWith(await secrets.prepare(owner), owner, 0n, value) };
}

/** Writes a record and queues its job; call it in the transaction of the change that causes it. */
export async function insertRevocation(db: VaultDatabase, { sealed, ...subject }: PreparedRevocation): Promise<void> {
  const expireTime = sql<Date>`now() + make_interval(days => ${revocationDays})`;
  await db
    .insertInto("revocations")
    .values({ ...subject, ...sealed, state: "PENDING", expireTime })
    .execute();
  await queueJobs(db, subject.projectId, [subject.id]);
}

/** A credential that is about to be destroyed, and whether there is a client to tell its provider with. */
export interface EndingGrant {
  readonly accountId: string;
  readonly hasClient: boolean;
}

/**
 * Takes over what credentials of one project hold, and queues the jobs; call it in the transaction that wipes them, before that.
 * The record of one without a client says at once that its provider cannot be told.
 */
export async function takeOverGrants(
  transaction: VaultDatabase,
  { projectId, revokeSharedGrant }: { readonly projectId: string; readonly revokeSharedGrant: boolean },
  grants: readonly EndingGrant[],
): Promise<void> {
  if (grants.length === 0) return;
  const named = grants.map((grant) => ({ ...grant, id: newId("rev") }));
  const isTold = sql`ending.has_client`;
  const ifTold = (column: string) => sql`case when ${isTold} then credentials.${sql.ref(column)} end`;
  await sql`
    insert into revocations
      (project_id, id, environment, external_user_id, account_id, app_slug, oauth_app_id, identity_digest,
       revoke_shared_grant, blob, data_key_id, wrapped_data_key, kek_id, credential_generation,
       state, last_error, expire_time, complete_time)
    select project_id, ending.id, environment, external_user_id, account_id, app_slug, oauth_app_id, identity_digest,
      ${revokeSharedGrant}, ${ifTold("blob")}, ${ifTold("data_key_id")}, ${ifTold("wrapped_data_key")},
      ${ifTold("kek_id")}, ${ifTold("generation")},
      case when ${isTold} then 'PENDING' else 'FAILED' end, case when ${isTold} then '' else ${clientMissing} end,
      now() + make_interval(days => ${revocationDays}), case when ${isTold} then null else now() end
    from unnest(
        ${named.map(({ id }) => id)}::text[], ${named.map(({ accountId }) => accountId)}::text[],
        ${named.map(({ hasClient }) => hasClient)}::bool[]
      ) as ending (id, account_id, has_client)
      join credentials using (account_id)
    where project_id = ${projectId}`.execute(transaction);
  const told = named.filter(({ hasClient }) => hasClient).map(({ id }) => id);
  if (told.length < named.length) {
    const untold = named.filter(({ hasClient }) => !hasClient).map(({ id }) => id);
    const rows = transaction.selectFrom("revocations").select(auditedAccount).where("projectId", "=", projectId);
    const failed = rows.where("id", "=", sql<string>`any(${untold})`);
    await insertAuditEntriesOf(transaction, failed, { ...revocationEnd.FAILED, reason: clientMissing });
  }
  await queueJobs(transaction, projectId, told);
}

async function queueJobs(db: VaultDatabase, projectId: string, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  const jobs = ids.map((id) => JSON.stringify({ projectId, id }));
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

/** Tokens that are of no use, and why, by a stable name. */
export type UselessTokens = Pick<RevocationRow, "blob" | "lastError">;

/** Gives a record up for good and wipes its tokens; given those that are of no use, not where others have taken their place. */
export async function failRevocation(db: VaultDatabase, key: RevocationKey, useless?: UselessTokens): Promise<void> {
  let change = ofKey(db, key)
    .set({ ...wiped, state: "FAILED", completeTime: sql<Date>`now()` })
    .where("state", "=", "PENDING");
  if (useless !== undefined) change = change.set({ lastError: useless.lastError }).where("blob", "=", useless.blob);
  const reason = useless?.lastError ?? "";
  await changeAudited(db, change.returning(auditedAccount), { ...revocationEnd.FAILED, reason });
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
