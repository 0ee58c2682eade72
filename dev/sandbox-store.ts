// What the sandbox provider must remember over a restart: grants, tokens, cookie keys and signing keys, in memory and,
// when a file is given, in that one JSON file. A token is handed out only after the file that knows it is on the disk, so
// that even `kill -9` costs no connected account its rotated refresh token.
import { generateKeyPair, randomBytes } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";
import type { Adapter, AdapterPayload } from "oidc-provider";
import { writePrivateFile } from "./private-file.ts";

interface StoredRecord {
  readonly payload: AdapterPayload;
  readonly expireTimeMs?: number;
}

interface StoredKeys {
  readonly cookieKeys: readonly string[];
  readonly jwks: { readonly keys: readonly object[] };
}

/** The state of one sandbox provider. Keys of its records are `<model>:<id>`. */
export interface SandboxStore {
  readonly keys: StoredKeys;
  adapter(model: string): Adapter;
  /** Removes every record of a model; gives how many there were. */
  destroyAll(model: string): Promise<number>;
  /** Resolves when everything is in the file. */
  flush(): Promise<void>;
}

async function generateKeys(): Promise<StoredKeys> {
  // RS256, because clients that know nothing of a provider expect that for id tokens.
  const { privateKey } = await promisify(generateKeyPair)("rsa", { modulusLength: 2048 });
  const jwk = {
    ...privateKey.export({ format: "jwk" }),
    use: "sig",
    alg: "RS256",
    kid: randomBytes(8).toString("hex"),
  };
  return { cookieKeys: [randomBytes(32).toString("base64url")], jwks: { keys: [jwk] } };
}

async function readState(file: string): Promise<{ keys: StoredKeys; records: [string, StoredRecord][] } | undefined> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    const { keys, records } = JSON.parse(text);
    return { keys, records: Object.entries(records) };
  } catch {
    // The parser's own text would quote the content, which holds keys.
    throw new Error(`${file} is damaged: delete it to start with a new sandbox provider`);
  }
}

/** Opens the state in `file`, made at first start; without a file it lives in memory only. */
export async function openSandboxStore(file?: string): Promise<SandboxStore> {
  if (file !== undefined) await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  const state = file === undefined ? undefined : await readState(file);
  const keys = state?.keys ?? (await generateKeys());
  const records = new Map<string, StoredRecord>(state?.records);

  const isLive = ({ expireTimeMs = Number.POSITIVE_INFINITY }: StoredRecord) => expireTimeMs > Date.now();
  const removeWhere = (unwanted: (key: string, record: StoredRecord) => boolean): number => {
    const found = [...records].filter(([key, record]) => unwanted(key, record));
    for (const [key] of found) records.delete(key);
    return found.length;
  };

  async function write(path: string): Promise<void> {
    removeWhere((_key, record) => !isLive(record));
    await writePrivateFile(path, JSON.stringify({ keys, records: Object.fromEntries(records) }));
  }
  let current: Promise<void> = Promise.resolve();
  let next: Promise<void> | undefined;
  // A change waits for a write that begins after it; all changes that come during one write share the next.
  function flush(): Promise<void> {
    if (file === undefined) return Promise.resolve();
    next ??= current
      .catch(() => undefined)
      .then(() => {
        next = undefined;
        current = write(file);
        return current;
      });
    return next;
  }

  function adapter(model: string): Adapter {
    const keyOf = (id: string) => `${model}:${id}`;
    const findLive = (id: string) => {
      const record = records.get(keyOf(id));
      return record !== undefined && isLive(record) ? record.payload : undefined;
    };
    const findBy = (name: "uid" | "userCode", value: string) =>
      [...records].find(
        ([key, record]) => key.startsWith(`${model}:`) && record.payload[name] === value && isLive(record),
      )?.[1].payload;
    return {
      find: async (id) => findLive(id),
      findByUid: async (uid) => findBy("uid", uid),
      findByUserCode: async (userCode) => findBy("userCode", userCode),
      async upsert(id, payload, expiresInSeconds) {
        const expiry = expiresInSeconds === undefined ? {} : { expireTimeMs: Date.now() + expiresInSeconds * 1000 };
        records.set(keyOf(id), { payload, ...expiry });
        await flush();
      },
      // At once, before any waiting: of two requests with one refresh token, the second must find it used.
      async consume(id) {
        const payload = findLive(id);
        if (payload !== undefined) payload.consumed = Math.floor(Date.now() / 1000);
        await flush();
      },
      async destroy(id) {
        records.delete(keyOf(id));
        await flush();
      },
      async revokeByGrantId(grantId) {
        removeWhere((key, { payload }) => key.startsWith(`${model}:`) && payload.grantId === grantId);
        await flush();
      },
    };
  }

  async function destroyAll(model: string): Promise<number> {
    const count = removeWhere((key) => key.startsWith(`${model}:`));
    await flush();
    return count;
  }

  await flush();
  return { keys, adapter, destroyAll, flush };
}
