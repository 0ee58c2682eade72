// Puts a secret in its account's row: the first one, or a new one in the place of the old when the user connects again. An
// account that was destroyed takes none any more.
import { type Actor, type AuditAction, insertAuditEntries } from "./audit-entries.ts";
import {
  type CredentialMaterial,
  credentialOwner,
  type GrantFacts,
  lockCredential,
  putCredential,
  secretKinds,
} from "./credentials.ts";
import { insertInvalidations } from "./lease-invalidations.ts";
import { holdOwnApp } from "./own-apps.ts";
import type { CredentialsTable, VaultDatabase } from "./schema.ts";
import { type ReadyKey, sealWith } from "./secrets.ts";

/** Whose credential it is. */
export type CredentialSubject = Pick<
  CredentialsTable,
  "projectId" | "environment" | "externalUserId" | "accountId" | "appSlug" | "oauthAppId"
>;

/** What is stored, how it came and by whom. */
export interface CredentialToStore {
  readonly key: ReadyKey;
  readonly material: CredentialMaterial;
  readonly facts: GrantFacts;
  readonly action: AuditAction;
  readonly actor: Actor;
  readonly reason?: string;
  /** Whether the app is none of the catalog's: then it must not end before this is stored. */
  readonly ownApp: boolean;
}

/**
 * Seals and stores, within a transaction. False when the account was destroyed, its app has ended, or it belongs to another
 * user or app. The key is a new one, so that what was sealed before cannot be opened with it.
 */
export async function storeCredential(
  transaction: VaultDatabase,
  { projectId, environment, externalUserId, accountId, appSlug, oauthAppId }: CredentialSubject,
  { key, material, facts, ownApp, ...by }: CredentialToStore,
): Promise<boolean> {
  const subject = { projectId, environment, externalUserId, accountId, appSlug, oauthAppId };
  if (ownApp && !(await holdOwnApp(transaction, subject))) return false;
  const existing = await lockCredential(transaction, subject);
  if (existing !== undefined) {
    const isSame =
      existing.environment === environment &&
      existing.externalUserId === externalUserId &&
      existing.appSlug === appSlug;
    if (existing.state === "REVOKED" || !isSame) return false;
  }
  const sealed = sealWith(key, credentialOwner(subject), (existing?.generation ?? 0n) + 1n, material);
  const kinds = secretKinds(material);
  await putCredential(transaction, subject, { sealed, secretKinds: kinds, facts, existing, ownApp });
  await insertAuditEntries(transaction, { ...by, projectId, environment, externalUserId, accountId });
  if (existing !== undefined) {
    await insertInvalidations(transaction, { projectId, accountIds: [accountId] }, "RECONNECTED");
  }
  return true;
}
