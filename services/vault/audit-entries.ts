// The table of audit entries: who did what to which account. An entry is written in the transaction of the change that it
// tells, so that neither is there without the other; what changes nothing (a lease) goes through audit-writer.ts. Who cannot
// write an entry does nothing: AUDIT_UNAVAILABLE. No secret stands in an entry: ids, names of ours, and the purpose of a reveal,
// which is the caller's own words, 500 characters at most.
import { type Compilable, type OperationNodeSource, sql } from "kysely";
import { StatusError } from "#libs/errors.ts";
import { insertRows } from "#libs/insert-rows.ts";
import type { Call } from "#libs/rpc.ts";
import type { Purpose } from "./envelope.ts";
import type { VaultDatabase } from "./schema.ts";
import type { SecretOwner } from "./secrets.ts";

/** What an entry tells. */
export type AuditAction =
  | "credential.stored"
  | "credential.connected"
  | "credential.imported"
  | "credential.refreshed"
  | "credential.refresh_failed"
  | "credential.refresh_refused"
  | "credential.leased"
  | "credential.revealed"
  | "credential.exported"
  | "credential.destroyed"
  | "credential.revocation_deferred"
  | "credential.revocation_done"
  | "credential.revocation_failed"
  | "oauth_client.put"
  | "oauth_client.destroyed"
  | "webhook_key.created"
  | "webhook_key.destroyed"
  | "app.put"
  | "app.destroyed"
  | "keys.rotated"
  | "user.erased"
  // Something that is sealed does not open, by the purpose of its envelope.
  | `${Purpose}.damaged`;

/** Who did it. */
export interface Actor {
  /** The service of the caller's certificate, or `vault` for its own work. */
  readonly service: string;
  /** Of the token that was passed on; empty without one. */
  readonly subject: string;
  readonly requestId: string;
}

/** Whose credential it is. */
export interface AuditedAccount {
  readonly projectId?: string;
  readonly environment?: string;
  readonly externalUserId?: string;
  readonly accountId?: string;
}

/** An entry that is to be written. */
export interface NewAuditEntry extends AuditedAccount {
  readonly action: AuditAction;
  readonly actor: Actor;
  readonly purpose?: string;
  readonly reason?: string;
  /** How long ago it happened. */
  readonly delayMs?: number;
}

/** Work that nobody asked for, or that goes on whoever asked. */
export const vaultItself: Actor = { service: "vault", subject: "", requestId: "" };

/** Who made a call. */
export function actorOf({ caller, requestId }: Pick<Call, "caller" | "requestId">): Actor {
  return { service: caller.service ?? "", subject: caller.token?.subject ?? "", requestId };
}

/** The columns that a change gives for its entry. */
export const auditedAccount = ["projectId", "environment", "externalUserId", "accountId"] as const;

/** The same of a row that was read. */
export function accountOf(row: Required<AuditedAccount>): Required<AuditedAccount> {
  const { projectId, environment, externalUserId, accountId } = row;
  return { projectId, environment, externalUserId, accountId };
}

/** Writes entries. UNAVAILABLE `AUDIT_UNAVAILABLE` when they cannot be written: the change that they tell is not made. */
export async function insertAuditEntries(db: VaultDatabase, ...entries: readonly NewAuditEntry[]): Promise<void> {
  if (entries.length === 0) return;
  await insertRows(db, "auditEntries", entries.map(columnsOf)).catch((error: unknown) => {
    throw auditUnavailable(error);
  });
}

/** A change that is to be made with its entries, and returns `auditedAccount` of each row that it changes; or rows that are read. */
type AuditedRows = OperationNodeSource & Compilable<Required<AuditedAccount>>;

/** What the entries of several accounts have in common. */
type CommonEntry = Pick<NewAuditEntry, "action" | "actor" | "reason">;

/**
 * Writes an entry for each account that a query reads, or that a change of rows that are held returns, which spares many rows
 * their way to here and back. Throws like `insertAuditEntries`, whichever of the two fails.
 */
export async function insertAuditEntriesOf(db: VaultDatabase, rows: AuditedRows, entry: CommonEntry): Promise<void> {
  await insertFrom(db, rows, entry).catch((error: unknown) => {
    throw auditUnavailable(error);
  });
}

/**
 * Makes a change, and writes one entry for each row that it changed: a change that met no row leaves no entry. Gives how many
 * there were. Throws like `insertAuditEntries` where it is the entry that cannot be written, else what the change throws.
 */
export async function changeAudited(db: VaultDatabase, change: AuditedRows, entry: CommonEntry): Promise<number> {
  if (db.isTransaction) return changeThenTell(db, change, entry);
  try {
    // In one statement, which is a third of a transaction's way to the database.
    return await insertFrom(db, change, entry);
  } catch (error) {
    if (error instanceof StatusError) throw error;
    // Once more, one after the other, which tells the fault of the audit from one of the change.
    return db.transaction().execute((transaction) => changeThenTell(transaction, change, entry));
  }
}

async function insertFrom(
  db: VaultDatabase,
  rows: AuditedRows,
  { action, actor, reason = "" }: CommonEntry,
): Promise<number> {
  const { numAffectedRows } = await sql`
    with audited as (${rows})
    insert into audit_entries
      (action, service, subject, request_id, reason, project_id, environment, external_user_id, account_id)
    select ${action}::text, ${actor.service}::text, ${actor.subject}::text, ${actor.requestId}::text, ${reason}::text,
      project_id, environment, external_user_id, account_id
    from audited`.execute(db);
  return Number(numAffectedRows ?? 0n);
}

async function changeThenTell(transaction: VaultDatabase, change: AuditedRows, entry: CommonEntry): Promise<number> {
  const { rows } = await sql<Required<AuditedAccount>>`${change}`.execute(transaction);
  await insertAuditEntries(transaction, ...rows.map((row) => ({ ...entry, ...accountOf(row) })));
  return rows.length;
}

/** That something sealed did not open. */
export function damageEntry({ purpose, id, ...owner }: SecretOwner, reason: string): NewAuditEntry {
  const { projectId, environment, externalUserId } = owner;
  const account = { projectId, environment, externalUserId, accountId: id };
  return { action: `${purpose}.damaged`, actor: vaultItself, ...account, reason };
}

/** What a caller is told while nothing can be audited. */
export function auditUnavailable(cause?: unknown): StatusError {
  const message = "The audit cannot be written, and nothing is done without: call again.";
  return new StatusError("UNAVAILABLE", "AUDIT_UNAVAILABLE", message, cause === undefined ? {} : { cause });
}

function columnsOf({ actor, action, delayMs = 0, ...entry }: NewAuditEntry) {
  const { projectId = "", environment = "", externalUserId = "", accountId = "", purpose = "", reason = "" } = entry;
  const { service, subject, requestId } = actor;
  const account = { projectId, environment, externalUserId, accountId };
  return { action, delayMs, service, subject, requestId, ...account, purpose, reason };
}
