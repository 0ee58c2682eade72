// The operator's command for a keyring file: `node services/vault/keyring-command.ts list|add|activate|remove FILE [KEY]`.
// The safe order: add; wait until GetVaultStatus shows the key in every process; activate; RotateKeys; wait until
// data_keys_by_kek shows none under the old one; keep the old key for as long as backups need it; remove. Running vaults see
// a change within seconds. The file is replaced whole or not at all, and keeps its owner.
import { randomBytes } from "node:crypto";
import { chown, open, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { type KeyringDocument, newKeyringEntry, readKeyringDocument } from "./keyring.ts";

/** What a command makes of a keyring; throws one sentence when it must not. */
type Change = (keyring: KeyringDocument, id: string, now: () => number) => KeyringDocument;

const changes: Readonly<Record<string, Change>> = {
  add: ({ active, keys }, _id, now) => ({ active, keys: [...keys, newKeyringEntry(now)] }),
  activate: ({ active, keys }, id) => ({ active: known(keys, id) || active, keys }),
  remove: ({ active, keys }, id) => {
    if (known(keys, id) === active) throw new Error(`${id} is active: activate another key first`);
    return { active, keys: keys.filter((key) => key.id !== id) };
  },
};

function known(keys: KeyringDocument["keys"], id: string): string {
  if (keys.some((key) => key.id === id)) return id;
  throw new Error(`the keyring has no key ${JSON.stringify(id)}`);
}

/** Runs a command and gives what to print: ids and times, never a key. */
export async function runKeyringCommand(
  [command = "", path = "", id = ""]: readonly string[],
  now: () => number,
): Promise<string> {
  const change = changes[command];
  if ((change === undefined && command !== "list") || path === "") {
    throw new Error("usage: node services/vault/keyring-command.ts list|add|activate|remove FILE [KEY]");
  }
  const before = await readKeyringDocument(path);
  const after = change?.(before, id, now) ?? before;
  if (after !== before) await replaceFile(path, `${JSON.stringify(after, undefined, 2)}\n`);
  return after.keys.map((key) => `${key.id}  ${key.createTime}${key.id === after.active ? "  active" : ""}\n`).join("");
}

/** A reader sees the old file or the new one, also after a power cut. */
async function replaceFile(path: string, text: string): Promise<void> {
  const { uid, gid } = await stat(path);
  const fresh = `${path}.${randomBytes(6).toString("hex")}`;
  const file = await open(fresh, "wx", 0o400);
  try {
    await file.writeFile(text);
    await file.sync();
    await file.close();
    await chown(fresh, uid, gid);
    await rename(fresh, path);
  } catch (error) {
    await file.close().catch(() => undefined);
    await rm(fresh, { force: true });
    throw new Error(`the keyring could not be replaced (${(error as NodeJS.ErrnoException).code})`);
  }
  const folder = await open(dirname(path), "r");
  await folder.sync().finally(() => folder.close());
}

if (import.meta.main) {
  try {
    process.stdout.write(await runKeyringCommand(process.argv.slice(2), Date.now));
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n`);
    process.exitCode = 1;
  }
}
