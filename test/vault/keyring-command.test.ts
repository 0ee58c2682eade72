// The operator's command for keyring files: what it changes, what it refuses, and that a key is never printed.
import { mkdtemp, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { newDataKey } from "../../services/vault/envelope.ts";
import { createKeyringFile, fileKeyring } from "../../services/vault/keyring.ts";
import { runKeyringCommand } from "../../services/vault/keyring-command.ts";

const owner = { dataKeyId: "dk_1", accountId: "apn_1" };
let directory: string;
let path: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "keyring-command-"));
  path = join(directory, "keyring.json");
  await createKeyringFile({ path, now: Date.now });
});

afterEach(() => rm(directory, { recursive: true }));

const run = (...parameters: string[]) => runKeyringCommand(parameters, Date.now);

test("adds a key that is not active, activates it and removes the old one, in a file for its owner alone", async () => {
  const keyring = fileKeyring({ path });
  const { active: old } = await keyring.keyIds();
  const dataKey = newDataKey();
  const wrapped = await keyring.wrap(dataKey, owner);
  await run("add", path);
  const added = await keyring.keyIds();
  expect(added).toMatchObject({ active: old, all: [old, expect.stringMatching(/^kek_[0-9a-f]{16}$/)] });
  const fresh = added.all[1] ?? "";
  await run("activate", path, fresh);
  expect((await keyring.keyIds()).active).toBe(fresh);
  expect((await keyring.unwrap(wrapped, owner)).equals(dataKey)).toBe(true);
  await run("remove", path, old);
  expect(await keyring.keyIds()).toEqual({ active: fresh, all: [fresh] });
  expect((await stat(path)).mode & 0o777).toBe(0o400);
  expect(await readdir(directory)).toEqual(["keyring.json"]);
});

test("prints ids and times and marks the active key, and never a key itself", async () => {
  const printed = await run("add", path);
  const { active, keys } = JSON.parse(await readFile(path, "utf8"));
  expect(printed).toBe(`${keys[0].id}  ${keys[0].createTime}  active\n${keys[1].id}  ${keys[1].createTime}\n`);
  expect(active).toBe(keys[0].id);
  expect(await run("list", path)).toBe(printed);
});

test("refuses in one sentence and changes nothing", async () => {
  const before = await readFile(path, "utf8");
  const { active } = JSON.parse(before);
  await expect(run("remove", path, active)).rejects.toThrow(`${active} is active`);
  await expect(run("activate", path, "kek_absent")).rejects.toThrow('the keyring has no key "kek_absent"');
  await expect(run("activate", path)).rejects.toThrow("the keyring has no key");
  await expect(run("add", join(directory, "absent.json"))).rejects.toThrow("cannot be opened (ENOENT)");
  await expect(run("destroy", path)).rejects.toThrow(/^usage: /);
  await expect(run("add")).rejects.toThrow(/^usage: /);
  expect(await readFile(path, "utf8")).toBe(before);
});
