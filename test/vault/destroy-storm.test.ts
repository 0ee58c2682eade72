// Destroying while a foreign hand moves generations between the reading and the destroying: the free rounds lose, the last
// one holds the rows, and is done.
import { readFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { createLogger } from "#libs/log.ts";
import { readSigningKey } from "#libs/signing-key.ts";
import { vaultItself } from "../../services/vault/audit-entries.ts";
import { type CallersFirst, callersFirst } from "../../services/vault/callers-first.ts";
import { destroyCredentials } from "../../services/vault/destroy.ts";
import { listenForLeases } from "../../services/vault/lease-signals.ts";
import { vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const access = { ...vault.database.runtime, applicationName: "storm-test", statementTimeoutMs: 10_000 };

test("destroys what is refreshed between each of its readings and its destroying, by holding the row", async () => {
  const accountId = await vault.connectAccount();
  const { secrets } = vault.vault;
  const signals = listenForLeases(access, createLogger("test", "silent"));
  vault.ends.push(() => signals.stop());
  const before = await vault.rowOf(accountId);
  let opened = 0;
  let isHeld = false;
  // A refresh is stored whenever a secret has been opened, which is after the row was read.
  const stormy: typeof secrets = {
    ...secrets,
    async open(owner, row) {
      const value = await secrets.open<never>(owner, row);
      if (owner.purpose !== "credential") return value;
      opened += 1;
      isHeld = await isLocked(accountId);
      if (!isHeld) await storeRefresh(accountId);
      return value;
    },
  };
  let served = 0;
  const precedence: CallersFirst = {
    ...callersFirst(),
    serve(work) {
      served += 1;
      return work();
    },
  };
  const signingKey = await readSigningKey("the key", await readFile(vault.signingKeyFile, "utf8"));
  const { db, catalog } = vault;
  const options = { db, secrets: stormy, catalog, signals, signingKey, callersFirst: precedence };
  const request = { projectId: whose.projectId, environment: "development", accountIds: [accountId] } as const;
  const [destroyed] = await destroyCredentials(options, { ...request, revokeSharedGrant: false, actor: vaultItself });
  // Three rounds lost to a refresh each; the fourth held the row, and nothing could be stored.
  expect({ opened, isHeld }).toEqual({ opened: 4, isHeld: true });
  expect(destroyed).toMatchObject({ credential: { accountId, generation: before.generation + 4n } });
  expect(await vault.rowOf(accountId)).toMatchObject({ state: "REVOKED", blob: null });
  const outbox = await vault.db.selectFrom("revocations").select("id").where("accountId", "=", accountId).execute();
  expect(outbox).toHaveLength(1);
  await expect(vault.lease(accountId)).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  // Each free round went before calls to providers; who asks again, with nothing left to destroy, does not.
  expect(served).toBe(3);
  await destroyCredentials(options, { ...request, revokeSharedGrant: false, actor: vaultItself });
  expect(served).toBe(3);

  /** What a refresh leaves: the next generation, sealed for it. */
  async function storeRefresh(id: string): Promise<void> {
    const { refresher } = vault.vault;
    const row = await vault.rowOf(id);
    await refresher.refresh(row);
    expect((await vault.rowOf(id)).generation).toBe(row.generation + 1n);
  }
});

/** Whether a transaction holds the row. */
async function isLocked(accountId: string): Promise<boolean> {
  const free = await vault.db
    .selectFrom("credentials")
    .select("accountId")
    .where("accountId", "=", accountId)
    .forUpdate()
    .skipLocked()
    .executeTakeFirst();
  return free === undefined;
}
