// A sealed vault: without its keyring, or with one that lacks a key that rows need. It says so, makes no key, and opens again.
import { access, chmod, rename } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { createKeyringFile } from "../../services/vault/keyring.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const sealed = { code: "FAILED_PRECONDITION", reason: "SEALED" };
const operator = await vault.vault.as("operator");

test("shows what is stored: states, keys, revocations, time", async () => {
  const accountId = await vault.connectAccount();
  const status = await operator.getVaultStatus({}, soon());
  expect(status).toMatchObject({ sealed: false, sealedReason: "", credentialsByState: { ACTIVE: 1n } });
  expect(status.activeKekId).toMatch(/^kek_/);
  // The account and the OAuth client; the authorization's key went with its end.
  expect(status.dataKeysByKek).toEqual({ [status.activeKekId]: 2n });
  expect(Math.abs((status.time?.getTime() ?? 0) - Date.now())).toBeLessThan(5_000);
  expect(accountId).toMatch(/^apn_/);
});

test("seals when its keyring goes, answers only its status, and opens when it is back", async () => {
  const accountId = await vault.connectAccount();
  const away = join(vault.directory, "away.json");
  await rename(vault.keyringFile, away);
  await until(() => !vault.vault.sealState.isOpen());
  await expect(vault.lease(accountId)).rejects.toMatchObject(sealed);
  await expect(vault.credential(accountId)).rejects.toMatchObject(sealed);
  await expect(vault.destroy(accountId)).rejects.toMatchObject(sealed);
  const status = await operator.getVaultStatus({}, soon());
  expect(status).toMatchObject({ sealed: true, sealedReason: expect.stringContaining("cannot be opened") });
  await expect(access(vault.keyringFile)).rejects.toThrow("ENOENT");
  await rename(away, vault.keyringFile);
  await until(() => vault.vault.sealState.isOpen());
  expect((await vault.lease(accountId)).lease?.generation).toBe(1n);
});

test("seals when its keyring can be read by others", async () => {
  await chmod(vault.keyringFile, 0o644);
  await until(() => !vault.vault.sealState.isOpen());
  await chmod(vault.keyringFile, 0o400);
  await until(() => vault.vault.sealState.isOpen());
});

test("starts sealed over rows that need a key that its keyring lacks, and makes none", async () => {
  await vault.connectAccount();
  const keyringFile = join(vault.directory, "other.json");
  const missing = await vault.startVault({ keyringFile, worker: false });
  const asAccount = await missing.as("account");
  const named = { projectId: "proj_1", environment: whose.environment, accountId: "apn_1" };
  await expect(asAccount.getCredential(named, soon())).rejects.toMatchObject(sealed);
  await expect(access(keyringFile)).rejects.toThrow("ENOENT");
  await createKeyringFile({ path: keyringFile, now: Date.now });
  const status = await (await missing.as("operator")).getVaultStatus({}, soon());
  expect(status).toMatchObject({ sealed: true, sealedReason: expect.stringContaining("need keys") });
  await expect(asAccount.getCredential(named, soon())).rejects.toMatchObject(sealed);
});
