// The spool: what a provider gave while the database does not take it lies sealed on the disk, and is stored by whoever comes
// next. The database is slow here because a test holds the row.
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { createLogger } from "#libs/log.ts";
import { crashAt } from "../../services/vault/crash-points.ts";
import { dataKeys } from "../../services/vault/data-keys.ts";
import { createKeyringFile, fileKeyring } from "../../services/vault/keyring.ts";
import { runKeyringCommand } from "../../services/vault/keyring-command.ts";
import { drainSpool, type StoreOptions } from "../../services/vault/refresh-store.ts";
import { secretsOver } from "../../services/vault/secrets.ts";
import { openSpool } from "../../services/vault/spool.ts";
import { until, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { db, rowOf, endTokenIn, lease } = vault;
const spoolDirectory = mkdtempSync(join(vault.directory, "spool-"));
const { refresher } = await vault.startVault({ worker: false, spoolDirectory });
const entries = () => readdirSync(spoolDirectory).filter((file) => file.endsWith(".sealed"));

/** What a process that starts now would drain with. */
async function nextLife(directory: string): Promise<StoreOptions> {
  const secrets = secretsOver(
    dataKeys({ provider: fileKeyring({ path: vault.keyringFile }), now: () => 0 }),
    () => undefined,
  );
  const log = createLogger("vault", "silent");
  return { db, secrets, log, spool: await openSpool({ directory, secrets, log }), passPoint: () => undefined };
}

/** Refreshes with the row held from the provider's answer on, and hands over what was spooled meanwhile. */
async function refreshHeld(accountId: string, whileHeld: (file: string) => Promise<void> | void): Promise<void> {
  await endTokenIn(accountId, -1);
  const held = Promise.withResolvers<void>();
  const release = Promise.withResolvers<void>();
  let holding: Promise<unknown> | undefined;
  vault.shim.misbehave(async () => {
    holding ??= db.transaction().execute(async (transaction) => {
      await sql`select from credentials where account_id = ${accountId} for update`.execute(transaction);
      held.resolve();
      await release.promise;
    });
    await held.promise;
    return undefined;
  });
  const refreshing = refresher.refresh(await rowOf(accountId));
  await until(() => entries().length === 1);
  const [file = ""] = entries();
  await whileHeld(file);
  release.resolve();
  await holding;
  expect(await refreshing).toEqual({ kind: "refreshed" });
}

test("an answer that the database does not take within a moment is on the disk, sealed, until it does", async () => {
  const accountId = await vault.connectAccount();
  await refreshHeld(accountId, (file) => {
    const path = join(spoolDirectory, file);
    const text = readFileSync(path, "utf8");
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(text).not.toContain("sandbox-token-");
    expect(Buffer.from(JSON.parse(text).blob, "base64").toString("latin1")).not.toContain("sandbox-token-");
    expect(text).not.toContain(accountId);
  });
  expect(entries()).toEqual([]);
  expect((await rowOf(accountId)).generation).toBe(2n);
  expect(await vault.callApi((await lease(accountId)).lease)).toBe(200);
});

test("a refresh that is stored at once is not spooled", async () => {
  const accountId = await vault.connectAccount();
  const before = statSync(spoolDirectory).mtimeMs;
  expect(await refresher.refresh(await rowOf(accountId))).toEqual({ kind: "refreshed" });
  await new Promise((resolve) => setTimeout(resolve, 150));
  expect(statSync(spoolDirectory).mtimeMs).toBe(before);
});

test("what a dead process left is stored at the next start, with the token's true end, and a second time changes nothing", async () => {
  const directory = mkdtempSync(join(vault.directory, "left-"));
  const accountId = await vault.connectAccount();
  const before = await rowOf(accountId);
  await refreshHeld(accountId, (file) => {
    writeFileSync(join(directory, file), readFileSync(join(spoolDirectory, file)));
  });
  const stored = await rowOf(accountId);
  // As if the commit had never been.
  const { generation, blob, dataKeyId, wrappedDataKey, kekId, lastIntentId } = before;
  const undone = { generation, blob, dataKeyId, wrappedDataKey, kekId, lastIntentId, expireTime: new Date(0) };
  await db.updateTable("credentials").set(undone).where("accountId", "=", accountId).execute();
  const [file = ""] = readdirSync(directory);
  const copy = readFileSync(join(directory, file));
  await drainSpool(await nextLife(directory));
  expect(readdirSync(directory)).toEqual([]);
  const drained = await rowOf(accountId);
  expect(drained).toMatchObject({ generation: 2n, state: "ACTIVE", lastIntentId: stored.lastIntentId });
  expect(drained.expireTime).toEqual(stored.expireTime);
  expect(await vault.callApi((await lease(accountId)).lease)).toBe(200);

  writeFileSync(join(directory, file), copy);
  await drainSpool(await nextLife(directory));
  expect(readdirSync(directory)).toEqual([]);
  expect((await rowOf(accountId)).generation).toBe(2n);
});

test("what was destroyed meanwhile is not stored but revoked at the provider", async () => {
  const directory = mkdtempSync(join(vault.directory, "left-"));
  const accountId = await vault.connectAccount();
  await refreshHeld(accountId, (file) => {
    writeFileSync(join(directory, file), readFileSync(join(spoolDirectory, file)));
  });
  await vault.destroy(accountId);
  // As if the commit had never been, and the account was destroyed with its old token.
  await db.updateTable("credentials").set({ lastIntentId: null }).where("accountId", "=", accountId).execute();
  const count = async () =>
    (await db.selectFrom("revocations").select("id").where("accountId", "=", accountId).execute()).length;
  const before = await count();
  await drainSpool(await nextLife(directory));
  expect(await count()).toBe(before + 1);
  expect(await rowOf(accountId)).toMatchObject({ state: "REVOKED", blob: null });
});

test("an entry that does not open is kept and told of, one that was not written to its end is dropped, the others are stored", async () => {
  const directory = mkdtempSync(join(vault.directory, "left-"));
  const accountId = await vault.connectAccount();
  await refreshHeld(accountId, (file) => {
    writeFileSync(join(directory, `z${file}`), readFileSync(join(spoolDirectory, file)));
  });
  appendFileSync(join(directory, "a.sealed"), "{");
  appendFileSync(join(directory, "b.part"), "{");
  await drainSpool(await nextLife(directory));
  expect(readdirSync(directory)).toEqual(["a.sealed"]);
});

test("what is spooled after a rotation is sealed under the new key, also while the key service is away", async () => {
  const directory = mkdtempSync(join(vault.directory, "rotated-"));
  const path = join(directory, "keyring.json");
  await createKeyringFile({ path, now: Date.now });
  const keyring = fileKeyring({ path });
  let isAway = false;
  const wrap: typeof keyring.wrap = async (...parameters) => {
    if (isAway) throw new Error("the key service is away");
    return keyring.wrap(...parameters);
  };
  const secrets = secretsOver(dataKeys({ provider: { ...keyring, wrap }, now: () => 0 }), () => undefined);
  const spool = await openSpool({ directory, secrets, log: createLogger("vault", "silent"), keyLifeMs: 20 });
  const kekOf = async () => {
    await spool.append("entry", {});
    return JSON.parse(readFileSync(join(directory, "entry.sealed"), "utf8")).kekId;
  };
  const { active: old } = await keyring.keyIds();
  expect(await kekOf()).toBe(old);
  const listed = await runKeyringCommand(["add", path], Date.now);
  const added = listed.trim().split("\n").at(-1)?.split(" ")[0] ?? "";
  await runKeyringCommand(["activate", path, added], Date.now);
  // As the vault does every few seconds.
  expect(await keyring.keyIds()).toMatchObject({ active: added });
  await until(async () => (await kekOf()) === added);
  isAway = true;
  await new Promise((resolve) => setTimeout(resolve, 60));
  expect(await kekOf()).toBe(added);
});

test("a crash point is refused outside development, and when it is none", () => {
  expect(() => crashAt("answered", false)).toThrow(/development/);
  expect(() => crashAt("anywhere", true)).toThrow(/answered/);
  expect(() => crashAt("", false)("answered")).not.toThrow();
});
