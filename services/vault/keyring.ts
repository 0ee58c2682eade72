// The provider of key-encryption keys (KEKs): the interface that every provider has, and the provider `file`, a keyring
// file outside the database's volume. Without a usable keyring the vault is sealed; there is no plaintext mode, and a
// missing keyring is never replaced by a new one.
//
//   { "active": "kek_b", "keys": [{ "id": "kek_a", "createTime": "2026-01-01T00:00:00Z", "key": "<32 bytes, base64>" }, ...] }
import { createSecretKey, type KeyObject, randomBytes } from "node:crypto";
import { open as openFile } from "node:fs/promises";
import { StatusError } from "#libs/errors.ts";
import { unwrapDataKey, wrapDataKey } from "./envelope.ts";

/** A data key as it is stored, with the id of the KEK that it is wrapped under. */
export interface WrappedDataKey {
  readonly kekId: string;
  readonly wrappedDataKey: Buffer;
}

/** What a data key belongs to; authenticated with it, so a wrapped key moved to another row does not unwrap. */
export interface DataKeyOwner {
  readonly dataKeyId: string;
  readonly accountId: string;
}

/** Where KEKs live: a file, or a service that never gives them out. A KEK that cannot be had is FAILED_PRECONDITION `SEALED`, a service that is away UNAVAILABLE `KEK_UNAVAILABLE`. */
export interface KekProvider {
  /** Wraps under the active KEK. */
  wrap(dataKey: KeyObject, owner: DataKeyOwner): Promise<WrappedDataKey>;
  unwrap(wrapped: WrappedDataKey, owner: DataKeyOwner): Promise<KeyObject>;
  /** Every KEK that this process can unwrap with now. */
  keyIds(): Promise<{ readonly active: string; readonly all: readonly string[] }>;
  /**
   * Whether wrapping and unwrapping would work now; the message is for the operator's log and holds no secret. Rejects
   * with UNAVAILABLE `KEK_UNAVAILABLE` when that cannot be told, because a remote service is away.
   */
  health(): Promise<{ readonly kind: "ready" } | { readonly kind: "sealed"; readonly message: string }>;
}

interface Keyring {
  readonly activeId: string;
  readonly activeKek: KeyObject;
  readonly keks: ReadonlyMap<string, KeyObject>;
}

/**
 * The provider `file`. Nothing is read before the first call. `keyIds` and `health` read the file again, and so does an
 * `unwrap` under an unknown KEK: a KEK that was added or activated is picked up without a restart, and a sealed vault
 * opens when its keyring comes back. While the file cannot be read, the KEKs read before stay in use.
 */
export function fileKeyring({ path }: { readonly path: string }): KekProvider {
  let keyring: Keyring | undefined;

  async function reload(): Promise<Keyring> {
    keyring = await readKeyring(path);
    return keyring;
  }

  async function loaded(): Promise<Keyring> {
    return keyring ?? (await reload().catch(throwSealed));
  }

  return {
    async wrap(dataKey, owner) {
      const { activeId, activeKek } = await loaded();
      return { kekId: activeId, wrappedDataKey: wrapDataKey(activeKek, { ...owner, kekId: activeId }, dataKey) };
    },
    async unwrap({ kekId, wrappedDataKey }, owner) {
      const kek = (await loaded()).keks.get(kekId) ?? (await reload().catch(throwSealed)).keks.get(kekId);
      if (kek === undefined) throwSealed(new Error(`keyring file ${path} has no key ${JSON.stringify(kekId)}`));
      return unwrapDataKey(kek, { ...owner, kekId }, wrappedDataKey);
    },
    async keyIds() {
      const { activeId, keks } = await reload().catch(throwSealed);
      return { active: activeId, all: [...keks.keys()] };
    },
    async health() {
      try {
        await reload();
        return { kind: "ready" };
      } catch (error) {
        return { kind: "sealed", message: (error as Error).message };
      }
    },
  };
}

/** A keyring as its file has it. */
export interface KeyringDocument {
  readonly active: string;
  readonly keys: readonly { readonly id: string; readonly createTime: string; readonly key: string }[];
}

/** A new KEK, as an entry of a keyring file. */
export function newKeyringEntry(now: () => number): KeyringDocument["keys"][number] {
  const id = `kek_${randomBytes(8).toString("hex")}`;
  return { id, createTime: new Date(now()).toISOString(), key: randomBytes(32).toString("base64") };
}

/** Reads a keyring file, for the command that changes it. Throws what `health` would say. */
export async function readKeyringDocument(path: string): Promise<KeyringDocument> {
  await readKeyring(path);
  return JSON.parse((await readPrivateFile(path)).toString("utf8"));
}

/**
 * Makes a keyring file with one new active KEK, mode 0400; an existing file is never touched. For the first start in
 * development: who calls it has checked that nothing in the database is sealed.
 */
export async function createKeyringFile({ path, now }: { readonly path: string; now(): number }): Promise<void> {
  const entry = newKeyringEntry(now);
  const keyring: KeyringDocument = { active: entry.id, keys: [entry] };
  const file = await openFile(path, "wx", 0o400);
  try {
    await file.writeFile(`${JSON.stringify(keyring, undefined, 2)}\n`);
    // A keyring lost to a power cut would take everything sealed under it along.
    await file.sync();
  } finally {
    await file.close();
  }
}

/** The caller is told only that the vault is sealed; the path and the fault are the cause, for the log. */
function throwSealed(cause: Error): never {
  throw new StatusError(
    "FAILED_PRECONDITION",
    "SEALED",
    "The vault is sealed: a key-encryption key is not available.",
    {
      cause,
    },
  );
}

async function readKeyring(path: string): Promise<Keyring> {
  const content = await readPrivateFile(path);
  try {
    return parseKeyring(content.toString("utf8"));
  } catch (error) {
    throw new Error(`keyring file ${path}: ${(error as Error).message}`);
  } finally {
    content.fill(0);
  }
}

async function readPrivateFile(path: string): Promise<Buffer> {
  const file = await openFile(path, "r").catch((error: NodeJS.ErrnoException) => {
    throw new Error(`keyring file ${path} cannot be opened (${error.code})`);
  });
  try {
    // Asked of the open file, not of the path, so that nothing can be put in its place between the check and the read.
    const stats = await file.stat();
    if (!stats.isFile()) throw new Error(`keyring file ${path} is not a regular file`);
    const mode = stats.mode & 0o777;
    if ((mode & 0o077) !== 0) {
      throw new Error(
        `keyring file ${path} has mode 0${mode.toString(8)}: it must be 0400 or 0600, for its owner alone`,
      );
    }
    return await file.readFile();
  } finally {
    await file.close();
  }
}

function parseKeyring(text: string): Keyring {
  const { active, keys } = parseObject(text);
  if (!Array.isArray(keys) || keys.length === 0) throw new Error("keys: must be a list of at least one key");
  const keks = new Map<string, KeyObject>();
  for (const [index, entry] of keys.entries()) {
    const { id, createTime, key } = (entry ?? {}) as Record<string, unknown>;
    if (typeof id !== "string" || !/^[\w.-]{1,64}$/.test(id)) {
      throw new Error(`keys[${index}].id: must be 1 to 64 letters, digits, "_", "-" or "."`);
    }
    if (keks.has(id)) throw new Error(`keys[${index}].id: appears twice`);
    if (typeof createTime !== "string" || Number.isNaN(Date.parse(createTime))) {
      throw new Error(`keys[${index}].createTime: must be a time like 2026-01-01T00:00:00Z`);
    }
    const kek = parseKey(key);
    if (kek === undefined) throw new Error(`keys[${index}].key: must be 32 bytes in base64`);
    keks.set(id, kek);
  }
  const activeKek = typeof active === "string" ? keks.get(active) : undefined;
  if (typeof active !== "string" || activeKek === undefined)
    throw new Error("active: must be the id of one of the keys");
  return { activeId: active, activeKek, keks };
}

function parseObject(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text)) as Record<string, unknown>;
  } catch {
    // The parser's own error quotes the text around the fault, which here is key material: it goes no further.
    throw new Error("is not JSON");
  }
}

function parseKey(base64: unknown): KeyObject | undefined {
  if (typeof base64 !== "string") return undefined;
  const bytes = Buffer.from(base64, "base64");
  try {
    // Node skips what is not base64, so a mistyped key would pass as another key: only the canonical text is taken.
    return bytes.length === 32 && bytes.toString("base64") === base64 ? createSecretKey(bytes) : undefined;
  } finally {
    bytes.fill(0);
  }
}
