// Verifies a dump of the audit offline, with nothing but the public keys that its checkpoints were signed with, and names the
// first thing that is not as it was sealed. What it can and cannot find is argued in audit-chain.ts.
import { createPublicKey, type KeyObject } from "node:crypto";
import type { JWK } from "jose";
import { type CheckpointHead, chainEntries, firstHash, isSignedBy } from "./audit-chain.ts";
import { type DumpedCheckpoint, type DumpLine, entryOf, readDumpLine } from "./audit-dump.ts";

/** Public keys by their ids. */
type VerificationKeys = ReadonlyMap<string, KeyObject>;

/** A checkpoint that was noted elsewhere: this dump must have it. */
export interface KnownHead {
  readonly number: bigint;
  /** Hexadecimal. */
  readonly hash: string;
}

/** What was found. */
export type AuditVerdict =
  | {
      readonly kind: "sound";
      readonly entries: number;
      readonly checkpoints: number;
      readonly unsealed: number;
      readonly head: KnownHead | undefined;
      /** Of the newest checkpoint. */
      readonly time: Date | undefined;
    }
  /** One sentence that names what is wrong. */
  | { readonly kind: "broken"; readonly fault: string };

// An entry is sealed within a second after its transaction; none takes minutes. One that is older than a checkpoint by so much
// and in none was put in past the sealing.
const latestSealingMs = 5 * 60_000;

/** Goes through a dump once, with the public keys as `readPublicKey` gives them. */
export async function verifyAudit(
  lines: AsyncIterable<string>,
  publicKeys: readonly JWK[],
  known?: KnownHead,
): Promise<AuditVerdict> {
  const keys = new Map(publicKeys.map((jwk) => [jwk.kid ?? "", createPublicKey({ key: jwk, format: "jwk" })]));
  let last: CheckpointHead | undefined;
  let isKnownFound = false;
  let [entries, unsealed, lineNumber] = [0, 0, 0];
  for await (const text of lines) {
    lineNumber += 1;
    const line = readDumpLine(text);
    if (line === undefined) return broken(`line ${lineNumber} is not a line of a dump`);
    if ("entry" in line) {
      const { id, time } = entryOf(line.entry);
      if (last && time.getTime() < last.time.getTime() - latestSealingMs) {
        return broken(`entry ${id} is in no checkpoint, and older than checkpoint ${last.number}: it was put in later`);
      }
      unsealed += 1;
      continue;
    }
    const head = headOf(line.checkpoint);
    const fault = faultOf(line, head, { last, keys });
    if (fault !== undefined) return broken(fault);
    if (head.number === known?.number) {
      if (line.checkpoint.hash !== known.hash)
        return broken(`checkpoint ${head.number} has another hash than was noted`);
      isKnownFound = true;
    }
    last = head;
    entries += line.entries.length;
  }
  if (known !== undefined && !isKnownFound) {
    return broken(`checkpoint ${known.number} is missing: the dump ends at ${last?.number ?? "none"}`);
  }
  const head = last && { number: last.number, hash: last.hash.toString("hex") };
  return { kind: "sound", entries, checkpoints: Number(last?.number ?? 0n), unsealed, head, time: last?.time };
}

type CheckpointLine = Extract<DumpLine, { checkpoint: unknown }>;

function faultOf(
  { checkpoint, entries: dumped }: CheckpointLine,
  head: CheckpointHead,
  { last, keys }: { readonly last: CheckpointHead | undefined; readonly keys: VerificationKeys },
): string | undefined {
  const expected = (last?.number ?? 0n) + 1n;
  if (head.number !== expected) return `checkpoint ${expected} is missing: ${head.number} is in its place`;
  if (!head.prevHash.equals(last?.hash ?? firstHash)) {
    return `checkpoint ${head.number} does not follow the one before it`;
  }
  for (const [index, id] of checkpoint.entry_ids.entries()) {
    const found = dumped[index]?.id;
    if (found !== id) return `entry ${id} of checkpoint ${head.number} is missing or not in its place`;
  }
  if (dumped.length > checkpoint.entry_ids.length) return `checkpoint ${head.number} has entries that it does not name`;
  const hashes = chainEntries(head.prevHash, dumped.map(entryOf));
  for (const [index, hash] of hashes.entries()) {
    if (hash.toString("hex") === checkpoint.entry_hashes[index]) continue;
    return `entry ${dumped[index]?.id} of checkpoint ${head.number} was changed`;
  }
  if (!hashes.at(-1)?.equals(head.hash)) return `checkpoint ${head.number} has another hash than its entries`;
  const key = keys.get(head.keyId);
  if (key === undefined) return `checkpoint ${head.number} was signed by the key ${head.keyId}, which was not given`;
  if (!isSignedBy(head, Buffer.from(checkpoint.signature, "hex"), key)) {
    return `checkpoint ${head.number} is not signed by the key ${head.keyId}`;
  }
  return undefined;
}

function headOf({ number, time, prev_hash, hash, key_id }: DumpedCheckpoint): CheckpointHead {
  const hashes = { prevHash: Buffer.from(prev_hash, "hex"), hash: Buffer.from(hash, "hex") };
  return { number: BigInt(number), time: new Date(time), ...hashes, keyId: key_id };
}

function broken(fault: string): AuditVerdict {
  return { kind: "broken", fault };
}
