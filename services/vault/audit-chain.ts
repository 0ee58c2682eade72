// The chain that makes the audit tamper-evident. Every entry is hashed over the hash before it, in the order in which a sealer
// (audit-sealer.ts) took them; every so often the newest hash is signed, as a checkpoint:
//
//   hash(i)    = SHA-256(hash(i - 1) | entry i, each field after its length)
//   checkpoint = number, ids of its entries in their order, hash before, hash after, time, key id, Ed25519 signature
//
// Writers do not chain: an entry is one insert in the transaction of what it tells, so that no change waits for another one's
// and many processes write at once. The sealer chains what is committed, within a fraction of a second, one process at a time.
//
// What is found, with the public key and nothing else: any change, deletion, insertion or reordering of sealed entries, any change
// or removal of a checkpoint below the newest, and a chain that was signed by another key. What is not:
// - Whoever is superuser of the database, or owner of the tables, in the moment between a commit and its sealing.
// - The removal of the newest checkpoints with their entries. It is found by whoever keeps the head (number and hash)
//   elsewhere: the vault logs it every minute, GetVaultStatus gives it.
// - Entries added by whoever has the vault's own database role: they are sealed like the vault's.
// - Everything, by whoever has the signing key too.
import { createHash, type KeyObject, sign, verify } from "node:crypto";
import type { SigningKey } from "#libs/signing-key.ts";
import { lengthPrefixed } from "./length-prefixed.ts";

/** An entry as it is hashed: all of it. */
export interface AuditEntry {
  readonly id: bigint;
  readonly time: Date;
  readonly delayMs: number;
  readonly action: string;
  readonly service: string;
  readonly subject: string;
  readonly projectId: string;
  readonly environment: string;
  readonly externalUserId: string;
  readonly accountId: string;
  readonly purpose: string;
  readonly requestId: string;
  readonly reason: string;
}

/** What a signature says. */
export interface CheckpointHead {
  readonly number: bigint;
  readonly time: Date;
  readonly prevHash: Buffer;
  readonly hash: Buffer;
  readonly keyId: string;
}

/** Where the chain begins. */
export const firstHash: Buffer = Buffer.alloc(32);

/** The hash after each entry. */
export function chainEntries(before: Buffer, entries: readonly AuditEntry[]): readonly Buffer[] {
  let hash = before;
  return entries.map((entry) => {
    hash = createHash("sha256").update(hash).update(entryBytes(entry)).digest();
    return hash;
  });
}

/** Signs a checkpoint. */
export function signCheckpoint(head: CheckpointHead, { privateKey }: SigningKey): Buffer {
  return sign(null, headBytes(head), privateKey);
}

/** Whether the checkpoint was signed by the owner of this key. */
export function isSignedBy(head: CheckpointHead, signature: Buffer, publicKey: KeyObject): boolean {
  return verify(null, headBytes(head), publicKey, signature);
}

function entryBytes(entry: AuditEntry): Buffer {
  const { id, time, delayMs, action, service, subject, projectId, environment } = entry;
  const { externalUserId, accountId, purpose, requestId, reason } = entry;
  return lengthPrefixed([
    ...["deputy-audit-entry/1", String(id), String(time.getTime()), String(delayMs), action, service, subject],
    ...[projectId, environment, externalUserId, accountId, purpose, requestId, reason],
  ]);
}

function headBytes({ number, time, prevHash, hash, keyId }: CheckpointHead): Buffer {
  return lengthPrefixed([
    ...["deputy-audit-checkpoint/1", String(number)],
    ...[prevHash, hash, String(time.getTime()), keyId],
  ]);
}
