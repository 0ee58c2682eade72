// The provider `file`, on true files and with true ciphers.
import { randomBytes } from "node:crypto";
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { newDataKey } from "../../services/vault/envelope.ts";
import { createKeyringFile, fileKeyring } from "../../services/vault/keyring.ts";

const owner = { dataKeyId: "dk_1", accountId: "apn_1" };
const createTime = "2026-01-01T00:00:00Z";
const keyA = { id: "kek_a", createTime, key: randomBytes(32).toString("base64") };
const keyB = { id: "kek_b", createTime, key: randomBytes(32).toString("base64") };

let directory: string;
let path: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "keyring-"));
  path = join(directory, "keyring.json");
});

afterEach(async () => {
  await rm(directory, { recursive: true });
});

async function writeKeyring(keyring: unknown, mode = 0o600): Promise<void> {
  await writeFile(path, typeof keyring === "string" ? keyring : JSON.stringify(keyring));
  await chmod(path, mode);
}

/** The fault that a promise ends with: it must be a StatusError. */
async function fault(promise: Promise<unknown>): Promise<StatusError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (error instanceof StatusError) return error;
  throw new Error("expected a StatusError", { cause: error });
}

describe("a keyring file", () => {
  test("is made with one active key for its owner alone, and never replaced", async () => {
    await createKeyringFile({ path, now: () => Date.parse(createTime) });
    const made = await readFile(path, "utf8");
    expect((await stat(path)).mode & 0o777).toBe(0o400);
    expect(JSON.parse(made).keys[0].createTime).toBe("2026-01-01T00:00:00.000Z");
    const { active, all } = await fileKeyring({ path }).keyIds();
    expect(all).toEqual([active]);
    await expect(createKeyringFile({ path, now: Date.now })).rejects.toMatchObject({ code: "EEXIST" });
    expect(await readFile(path, "utf8")).toBe(made);
  });

  test.each([0o400, 0o600])("is taken with mode %o", async (mode) => {
    await writeKeyring({ active: "kek_a", keys: [keyA] }, mode);
    expect(await fileKeyring({ path }).health()).toEqual({ kind: "ready" });
  });

  test.each([0o440, 0o404, 0o620, 0o602, 0o610, 0o644, 0o777])("is refused with mode %o", async (mode) => {
    await writeKeyring({ active: "kek_a", keys: [keyA] }, mode);
    const message = `keyring file ${path} has mode 0${mode.toString(8)}: it must be 0400 or 0600, for its owner alone`;
    expect(await fileKeyring({ path }).health()).toEqual({ kind: "sealed", message });
    expect(await fault(fileKeyring({ path }).wrap(newDataKey(), owner))).toMatchObject({ reason: "SEALED" });
  });

  test.each<[string, unknown, string]>([
    ["nothing", "", "is not JSON"],
    ["a broken text", `{"active":"kek_a","keys":[{"key":"${keyA.key}`, "is not JSON"],
    ["JSON of another kind", "null", "keys: must be a list"],
    ["no keys", { active: "kek_a", keys: [] }, "keys: must be a list of at least one key"],
    ["an empty entry", { active: "kek_a", keys: [null] }, "keys[0].id: must be"],
    ["a key without an id", { active: "kek_a", keys: [keyA, { ...keyB, id: "" }] }, "keys[1].id: must be"],
    ["the same id twice", { active: "kek_a", keys: [keyA, { ...keyB, id: "kek_a" }] }, "keys[1].id: appears twice"],
    ["no time", { active: "kek_a", keys: [{ ...keyA, createTime: "soon" }] }, "keys[0].createTime: must be a time"],
    ["a short key", { active: "kek_a", keys: [{ ...keyA, key: keyA.key.slice(4) }] }, "keys[0].key: must be 32 bytes"],
    ["a mistyped key", { active: "kek_a", keys: [{ ...keyA, key: `*${keyA.key}` }] }, "keys[0].key: must be 32 bytes"],
    ["no active key", { keys: [keyA] }, "active: must be the id of one of the keys"],
    ["an unknown active key", { active: "kek_b", keys: [keyA] }, "active: must be the id of one of the keys"],
  ])("with %s is refused, naming the field and no key", async (_name, keyring, expected) => {
    await writeKeyring(keyring);
    const health = await fileKeyring({ path }).health();
    expect(health).toEqual({ kind: "sealed", message: expect.stringContaining(`keyring file ${path}: ${expected}`) });
    const error = await fault(fileKeyring({ path }).keyIds());
    for (const secret of [keyA.key, keyB.key]) {
      // The parser would quote some ten characters of the text, so no short piece of a key may show either.
      for (let start = 0; start + 6 <= secret.length; start++) {
        expect(inspect([health, error, error.stack])).not.toContain(secret.slice(start, start + 6));
      }
    }
  });

  test("that is a directory is refused", async () => {
    const health = await fileKeyring({ path: directory }).health();
    expect(health).toEqual({ kind: "sealed", message: `keyring file ${directory} is not a regular file` });
  });

  test("that is missing seals the vault and is not made, and its return opens the vault", async () => {
    const provider = fileKeyring({ path });
    const message = `keyring file ${path} cannot be opened (ENOENT)`;
    expect(await provider.health()).toEqual({ kind: "sealed", message });
    const error = await fault(provider.wrap(newDataKey(), owner));
    expect(error).toMatchObject({ code: "FAILED_PRECONDITION", reason: "SEALED", cause: { message } });
    expect(error.message).not.toContain(path);
    await expect(stat(path)).rejects.toMatchObject({ code: "ENOENT" });

    await writeKeyring({ active: "kek_a", keys: [keyA] });
    expect(await provider.wrap(newDataKey(), owner)).toMatchObject({ kekId: "kek_a" });
  });
});

describe("the provider file", () => {
  test("wraps under the active key and unwraps under every key of the ring", async () => {
    await writeKeyring({ active: "kek_a", keys: [keyA] });
    const key = newDataKey();
    const old = await fileKeyring({ path }).wrap(key, owner);
    await writeKeyring({ active: "kek_b", keys: [keyA, keyB] });
    const provider = fileKeyring({ path });
    const renewed = await provider.wrap(key, owner);
    expect([old.kekId, renewed.kekId]).toEqual(["kek_a", "kek_b"]);
    expect((await provider.unwrap(old, owner)).equals(key)).toBe(true);
    expect((await provider.unwrap(renewed, owner)).equals(key)).toBe(true);
    expect(await provider.keyIds()).toEqual({ active: "kek_b", all: ["kek_a", "kek_b"] });
  });

  test("rewraps a stored row under the newly active key", async () => {
    await writeKeyring({ active: "kek_a", keys: [keyA] });
    const row = { ...owner, ...(await fileKeyring({ path }).wrap(newDataKey(), owner)) };
    await writeKeyring({ active: "kek_b", keys: [keyA, keyB] });
    const provider = fileKeyring({ path });
    const key = await provider.unwrap(row, row);
    const rewrapped = { ...row, ...(await provider.wrap(key, row)) };
    await writeKeyring({ active: "kek_b", keys: [keyB] });
    expect((await fileKeyring({ path }).unwrap(rewrapped, rewrapped)).equals(key)).toBe(true);
  });

  test("refuses a wrapped key in another row, or under another key's id", async () => {
    await writeKeyring({ active: "kek_a", keys: [keyA, keyB] });
    const provider = fileKeyring({ path });
    const wrapped = await provider.wrap(newDataKey(), owner);
    const tampered = { code: "DATA_LOSS", reason: "TAMPERED" };
    expect(await fault(provider.unwrap(wrapped, { ...owner, dataKeyId: "dk_2" }))).toMatchObject(tampered);
    expect(await fault(provider.unwrap(wrapped, { ...owner, accountId: "apn_2" }))).toMatchObject(tampered);
    expect(await fault(provider.unwrap({ ...wrapped, kekId: "kek_b" }, owner))).toMatchObject(tampered);
  });

  test("answers SEALED for a key that the ring has not, until the ring has it", async () => {
    await writeKeyring({ active: "kek_a", keys: [keyA] });
    const wrapped = await fileKeyring({ path }).wrap(newDataKey(), owner);
    await writeKeyring({ active: "kek_b", keys: [keyB] });
    const provider = fileKeyring({ path });
    const error = await fault(provider.unwrap(wrapped, owner));
    expect(error).toMatchObject({ code: "FAILED_PRECONDITION", reason: "SEALED" });
    expect(error.cause).toMatchObject({ message: `keyring file ${path} has no key "kek_a"` });

    await writeKeyring({ active: "kek_b", keys: [keyA, keyB] });
    expect((await provider.unwrap(wrapped, owner)).symmetricKeySize).toBe(32);
  });

  test("takes up an activated key when asked for its health, and keeps its keys while the file is broken", async () => {
    await writeKeyring({ active: "kek_a", keys: [keyA] });
    const provider = fileKeyring({ path });
    await provider.health();
    await writeKeyring({ active: "kek_b", keys: [keyA, keyB] });
    await provider.health();
    await writeKeyring("half a fi");
    expect(await provider.health()).toMatchObject({ kind: "sealed" });
    expect(await provider.wrap(newDataKey(), owner)).toMatchObject({ kekId: "kek_b" });
  });
});
