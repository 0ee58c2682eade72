// The spool: what a provider gave while the database did not take it, on this machine's disk, sealed and synced, so that a
// process that dies at that moment loses nothing. An entry lives from 100 ms after the answer until the database has it; what
// is found at start is stored first. One file for each entry, complete or absent: written aside, synced, then renamed.
import { mkdir, open as openFile, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { newId } from "#libs/ids.ts";
import type { Logger } from "#libs/log.ts";
import { type MaybeSealed, type ReadyKey, type SecretOwner, type Secrets, sealWith } from "./secrets.ts";

/** A folder of sealed entries. */
export interface Spool {
  /** Resolves when the entry would survive a power cut. */
  append(name: string, value: unknown): Promise<void>;
  remove(name: string): Promise<void>;
  /** Hands every entry to `take`, and removes those that it took. An entry that does not open is kept, and told of. */
  drain(take: (value: unknown) => Promise<void>): Promise<void>;
}

interface SpoolKey {
  readonly owner: SecretOwner;
  readonly ready: ReadyKey;
}

const suffix = ".sealed";
// What was not written to its end: nobody was told that it is safe.
const part = ".part";

/** Opens the spool in a folder of this process alone, made where it is missing. */
export async function openSpool({
  directory,
  secrets,
  log,
  keyLifeMs = 300_000,
}: {
  readonly directory: string;
  readonly secrets: Secrets;
  readonly log: Logger;
  readonly keyLifeMs?: number;
}): Promise<Spool> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  let current: SpoolKey | undefined;

  async function makeKey(): Promise<SpoolKey> {
    const owner = ownerOf(newId("int"));
    current = { owner, ready: await secrets.prepare(owner) };
    return current;
  }

  // Made ahead, so that no key service has to answer in the moment of need; and now and then anew, so that after a rotation
  // nothing is sealed for long under a key that the operator is about to remove. One that cannot be made leaves the old.
  const renew = () => makeKey().catch(() => undefined);
  renew();
  setInterval(renew, keyLifeMs).unref();

  return {
    async append(name, value) {
      const { owner, ready } = current ?? (await makeKey());
      const { blob, wrappedDataKey, ...columns } = sealWith(ready, owner, 0n, value);
      const text = { ...columns, id: owner.id, ...base64({ blob, wrappedDataKey }) };
      const path = join(directory, name);
      await writeSynced(path + part, JSON.stringify(text));
      await rename(path + part, path + suffix);
      await syncDirectory(directory);
    },
    remove: (name) => rm(join(directory, name + suffix), { force: true }),
    async drain(take) {
      const names = await readdir(directory);
      for (const file of names.filter((name) => name.endsWith(part))) await rm(join(directory, file), { force: true });
      const files = names.filter((name) => name.endsWith(suffix)).sort();
      for (const file of files) {
        try {
          await take(await readEntry(join(directory, file), secrets));
          await rm(join(directory, file), { force: true });
        } catch (error) {
          log.error({ file, err: error }, "a spooled grant could not be stored: its file is kept");
        }
      }
    },
  };
}

// What an entry is about is inside of it; outside there is nothing to bind it to but the key's own id.
function ownerOf(id: string): SecretOwner {
  return { purpose: "spool", projectId: "", environment: "", externalUserId: "", id, appSlug: "" };
}

function base64(bytes: { readonly blob: Buffer; readonly wrappedDataKey: Buffer }) {
  return { blob: bytes.blob.toString("base64"), wrappedDataKey: bytes.wrappedDataKey.toString("base64") };
}

async function readEntry(path: string, secrets: Secrets): Promise<unknown> {
  const { id, blob, wrappedDataKey, dataKeyId, kekId } = JSON.parse(await readFile(path, "utf8"));
  const sealed: MaybeSealed = {
    ...{ dataKeyId, kekId },
    blob: Buffer.from(blob, "base64"),
    wrappedDataKey: Buffer.from(wrappedDataKey, "base64"),
  };
  return secrets.open(ownerOf(id), { ...sealed, generation: 0n });
}

async function writeSynced(path: string, text: string): Promise<void> {
  const file = await openFile(path, "w", 0o600);
  try {
    await file.writeFile(text);
    await file.datasync();
  } finally {
    await file.close();
  }
}

/** A new name is on the disk only with its folder. */
async function syncDirectory(path: string): Promise<void> {
  const folder = await openFile(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
