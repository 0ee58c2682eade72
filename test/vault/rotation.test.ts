// Rotation of the key-encryption key under a running vault: rows are wrapped anew, secrets stay as they are, readers notice
// nothing, and what cannot be unwrapped stops nobody.
import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { fileKeyring } from "../../services/vault/keyring.ts";
import { runKeyringCommand } from "../../services/vault/keyring-command.ts";
import { insertKeys, keyOf } from "./rotated-rows.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { db, keyringFile, lease } = vault;
const operator = await vault.vault.as("operator");
const status = () => operator.getVaultStatus({}, soon());
const command = (...parameters: string[]) => runKeyringCommand(parameters, Date.now);

/** Adds a key to the keyring and makes it active. */
async function activateNewKey(): Promise<string> {
  const id = (await command("add", keyringFile)).trim().split("\n").at(-1)?.split(" ")[0] ?? "";
  await until(async () => (await status()).processesByKek[id] === (await status()).processes);
  await command("activate", keyringFile, id);
  return id;
}

/** Waits until nothing but what is given is under another key. */
async function untilRotated(kekId: string, left = 0n): Promise<void> {
  await until(async () => {
    const { dataKeysByKek } = await status();
    return Object.entries(dataKeysByKek).every(([id, count]) => id === kekId || count === left);
  });
}

async function apiKeyOf(accountId: string): Promise<string | undefined> {
  return (await lease(accountId)).lease?.headers[0]?.value;
}

test("wraps every data key anew while leases go on, and the old key can be removed", async () => {
  const oauthAccount = await vault.connectAccount();
  const pending = await vault.consent(vault.newAccountId());
  const accountIds = await insertKeys({ db, secrets: vault.vault.secrets }, { ...whose, prefix: "many", count: 3_000 });
  await vault.consent(vault.newAccountId());
  const old = (await status()).activeKekId;
  const second = await vault.startVault({ worker: false });
  const before = await vault.rowOf(accountIds[0] ?? "");

  const kekId = await activateNewKey();
  let leased = 0;
  let rotating = true;
  const readers = Array.from({ length: 4 }, async () => {
    while (rotating) {
      const accountId = accountIds[(leased * 7) % accountIds.length] ?? "";
      leased += 1;
      expect(await apiKeyOf(accountId)).toBe(keyOf(accountId));
    }
  });
  const { remaining } = await operator.rotateKeys({ activateKekId: kekId }, soon());
  // The accounts, one by OAuth, two authorizations under way and the OAuth client.
  expect(remaining).toBe(3_004n);
  await untilRotated(kekId);
  rotating = false;
  await Promise.all(readers);
  expect(leased).toBeGreaterThan(20);

  const after = await vault.rowOf(accountIds[0] ?? "");
  expect(after).toMatchObject({ blob: before.blob, dataKeyId: before.dataKeyId, generation: before.generation, kekId });
  expect(after.wrappedDataKey).not.toEqual(before.wrappedDataKey);
  await command("remove", keyringFile, old);
  await until(async () => (await status()).processesByKek[old] === undefined);
  for (const { lines } of [vault.vault, second]) {
    expect(lines.filter((line) => line.includes("is sealed"))).toEqual([]);
    expect(lines.some((line) => line.includes("a pass of the rotation ended"))).toBe(true);
  }
  const fresh = await vault.startVault({ worker: false });
  expect(await fresh.sealState.check()).toMatchObject({ sealedReason: undefined, activeKekId: kekId });
  const asProxy = await fresh.as("proxy");
  for (const accountId of [...accountIds.slice(0, 50), oauthAccount]) await vault.leaseBy(asProxy, accountId);
  await vault.asAccount.completeAuthorization(pending.redirect, soon());
  await Promise.all([second.stop(), fresh.stop()]);
});

test("changes nothing when it is asked for again", async () => {
  const accountId = await vault.connectAccount();
  const before = await vault.rowOf(accountId);
  expect(await operator.rotateKeys({}, soon())).toEqual({ remaining: 0n });
  expect(await operator.rotateKeys({}, soon())).toEqual({ remaining: 0n });
  expect((await vault.rowOf(accountId)).wrappedDataKey).toEqual(before.wrappedDataKey);
});

test("counts a row that cannot be unwrapped, names it in the log, and wraps the others", async () => {
  const [damaged = "", ...others] = await insertKeys(
    { db, secrets: vault.vault.secrets },
    { ...whose, prefix: "damaged", count: 200 },
  );
  const { wrappedDataKey, dataKeyId, kekId: old } = await vault.rowOf(damaged);
  const put = (wrapped: Buffer | null) =>
    db.updateTable("credentials").set({ wrappedDataKey: wrapped }).where("accountId", "=", damaged).execute();
  const flipped = Buffer.from(wrappedDataKey ?? []);
  flipped[20] = (flipped[20] ?? 0) ^ 1;
  await put(flipped);
  const kekId = await activateNewKey();
  await operator.rotateKeys({}, soon());
  await untilRotated(kekId, 1n);
  await until(async () => (await status()).damagedDataKeys === 1n);
  expect((await status()).dataKeysByKek[old ?? ""]).toBe(1n);
  expect(vault.vault.lines.find((line) => line.includes(String(dataKeyId)))).toContain(damaged);
  expect(await apiKeyOf(others[0] ?? "")).toBe(keyOf(others[0] ?? ""));
  await expect(lease(damaged)).rejects.toMatchObject({ code: "DATA_LOSS" });
  // Restored from a backup: the next look finds it.
  await put(wrappedDataKey);
  await untilRotated(kekId);
  expect(await apiKeyOf(damaged)).toBe(keyOf(damaged));
});

test("a grant that the outbox took over is wrapped anew too, and its provider told", async () => {
  const accountId = await vault.connectAccount();
  const told = Promise.withResolvers<void>();
  vault.shim.misbehave(async () => {
    await told.promise;
    return { status: 503, body: "{}" };
  });
  await vault.destroy(accountId);
  const records = db.selectFrom("revocations").selectAll().where("accountId", "=", accountId);
  const before = await records.executeTakeFirstOrThrow();
  const kekId = await activateNewKey();
  await operator.rotateKeys({}, soon());
  await untilRotated(kekId);
  const after = await records.executeTakeFirstOrThrow();
  expect(after).toMatchObject({ kekId, blob: before.blob, dataKeyId: before.dataKeyId, state: "PENDING" });
  expect(after.wrappedDataKey).not.toEqual(before.wrappedDataKey);
  vault.shim.misbehave(() => undefined);
  told.resolve();
  await until(async () => (await records.executeTakeFirst())?.state === "DONE", 15_000);
});

test("a refresh that is under way does not put the old wrapping back", async () => {
  const accountId = await vault.connectAccount();
  await vault.endTokenIn(accountId, -1);
  const arrived = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<void>();
  vault.shim.misbehave(async () => {
    arrived.resolve();
    await answer.promise;
    return undefined;
  });
  const leased = lease(accountId);
  await arrived.promise;
  const kekId = await activateNewKey();
  await operator.rotateKeys({}, soon());
  await untilRotated(kekId);
  answer.resolve();
  expect((await leased).lease?.refreshed).toBe(true);
  expect(await vault.rowOf(accountId)).toMatchObject({ kekId, generation: 2n });
  expect((await lease(accountId)).lease?.generation).toBe(2n);
});

test("what is wrapped under the old key afterwards is found and wrapped anew", async () => {
  const accountId = await vault.connectAccount();
  const old = await vault.rowOf(accountId);
  const kekId = await activateNewKey();
  await operator.rotateKeys({}, soon());
  await untilRotated(kekId);
  // As a process does that has not seen the change yet.
  await db
    .updateTable("credentials")
    .set({ wrappedDataKey: old.wrappedDataKey, kekId: old.kekId })
    .where("accountId", "=", accountId)
    .execute();
  await untilRotated(kekId);
  expect((await lease(accountId)).lease?.generation).toBe(1n);
});

test("passes over a row that somebody holds, and comes back to it", async () => {
  const [held = "", ...others] = await insertKeys(
    { db, secrets: vault.vault.secrets },
    { ...whose, prefix: "held", count: 100 },
  );
  const kekId = await activateNewKey();
  await db.transaction().execute(async (transaction) => {
    await sql`select from credentials where account_id = ${held} for update`.execute(transaction);
    await operator.rotateKeys({}, soon());
    await untilRotated(kekId, 1n);
    expect((await vault.rowOf(others[0] ?? "")).kekId).toBe(kekId);
    expect((await vault.rowOf(held)).kekId).not.toBe(kekId);
  });
  await untilRotated(kekId);
});

test("refuses a key that the keyring has not, that is not active, or that another process lacks", async () => {
  const refused = (activateKekId: string) => operator.rotateKeys({ activateKekId }, soon());
  await expect(refused("kek_absent")).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  await expect(refused("kek_absent")).rejects.toThrow(/^activate_kek_id: /);
  const added = (await command("add", keyringFile)).trim().split("\n").at(-1)?.split(" ")[0] ?? "";
  await expect(refused(added)).rejects.toMatchObject({ code: "FAILED_PRECONDITION", reason: "KEK_NOT_ACTIVE" });

  const elsewhere = join(vault.directory, "elsewhere.json");
  await copyFile(keyringFile, elsewhere);
  const newest = await activateNewKey();
  const other = await vault.startVault({ keyringFile: elsewhere, worker: false });
  await until(async () => (await status()).processes === 2n);
  await expect(refused(newest)).rejects.toMatchObject({ code: "FAILED_PRECONDITION", reason: "KEK_NOT_EVERYWHERE" });
  await other.stop();
  expect((await status()).processes).toBe(1n);
  await expect(refused(newest)).resolves.toBeDefined();
});

test("a process whose keyring has the old key active wraps nothing back", async () => {
  const accountId = await vault.connectAccount();
  const behind = join(vault.directory, "behind.json");
  await command("add", keyringFile);
  await copyFile(keyringFile, behind);
  const { active: old, all } = await fileKeyring({ path: behind }).keyIds();
  const fresh = all.at(-1) ?? "";
  await command("activate", keyringFile, fresh);
  await operator.rotateKeys({ activateKekId: fresh }, soon());
  await untilRotated(fresh);
  const late = await vault.startVault({ keyringFile: behind, worker: false });
  await until(() => late.lines.some((line) => line.includes("another key is active here")));
  expect(late.sealState.isOpen()).toBe(true);
  expect((await vault.rowOf(accountId)).kekId).toBe(fresh);
  expect((await status()).dataKeysByKek[old]).toBeUndefined();
  await late.stop();
});

test("lets nobody but the operator rotate", async () => {
  for (const service of ["account", "proxy", "gateway"] as const) {
    const call = (await vault.vault.as(service)).rotateKeys({}, soon());
    await expect(call, service).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
  }
});
