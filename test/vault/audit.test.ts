// What is audited: an entry for each thing that is done to a credential, in the transaction of the change or before the answer.
import { generateKeyPairSync } from "node:crypto";
import { sql } from "kysely";
import { expect, test } from "vitest";
import { auditedAccount, changeAudited, vaultItself } from "../../services/vault/audit-entries.ts";
import { soon, tokenWith, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { db, asAccount } = vault;
const operator = await vault.vault.as("operator");
const named = { projectId: "proj_1", environment: whose.environment };

const entriesOf = (accountId: string) =>
  db.selectFrom("auditEntries").selectAll().where("accountId", "=", accountId).orderBy("id").execute();
const actionsOf = async (accountId: string) => (await entriesOf(accountId)).map(({ action }) => action);

test("has an entry for each thing that is done to a credential, with who did it", async () => {
  const accountId = await vault.connectAccount();
  await vault.lease(accountId);
  // Leases are written a moment later, many at a time.
  await until(async () => (await actionsOf(accountId)).length === 2);
  await asAccount.refreshCredential({ ...named, accountId, generation: 0n }, { ...soon(), requestId: "request-00001" });
  // The proxy that watches is given the new lease unasked.
  await until(async () => (await actionsOf(accountId)).length === 4);
  await vault.destroy(accountId);
  await until(async () => (await actionsOf(accountId)).includes("credential.revocation_done"));
  const entries = await entriesOf(accountId);
  expect(entries.map(({ action, service }) => `${action} by ${service}`)).toEqual([
    "credential.connected by account",
    "credential.leased by proxy",
    "credential.refreshed by vault",
    "credential.leased by proxy",
    "credential.destroyed by account",
    "credential.revocation_done by vault",
  ]);
  const subject = { projectId: "proj_1", environment: "development", externalUserId: "user-1", accountId };
  for (const entry of entries) expect(entry).toMatchObject(subject);
  expect(entries[1]).toMatchObject({ subject: "cli_1" });
  for (const entry of [entries[0], entries[1], entries[4]]) expect(entry?.requestId).toMatch(/^[\w-]{8,}$/);
});

test("has one for stored keys, refused refreshes, OAuth clients and rotations, and none for what was not done", async () => {
  const [keys, refused] = [vault.newAccountId(), await vault.connectAccount()];
  const material = { $case: "fields" as const, value: { values: { api_key: "sandbox-key-12345678" } } };
  const store = (accountId: string) =>
    asAccount.storeCredential({ ...whose, accountId, appSlug: "sandbox_header_key", material }, soon());
  await store(keys);
  await vault.destroy(keys);
  await expect(store(keys)).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  expect(await actionsOf(keys)).toEqual(["credential.stored", "credential.destroyed"]);

  vault.shim.misbehave((path) =>
    path === "/token" ? { kind: "answer", status: 400, body: '{"error":"invalid_grant"}' } : undefined,
  );
  await asAccount.refreshCredential({ ...named, accountId: refused, generation: 0n }, soon()).catch(() => undefined);
  expect((await entriesOf(refused)).at(-1)).toMatchObject({
    action: "credential.refresh_refused",
    reason: "INVALID_GRANT",
    service: "vault",
  });

  const client = { projectId: "proj_1", oauthAppId: "oa_audited" };
  await asAccount.putOauthClient({ ...client, appSlug: "sandbox", clientId: "c", clientSecrets: ["any"] }, soon());
  await asAccount.destroyOauthClient(client, soon());
  await asAccount.destroyOauthClient(client, soon());
  expect(await actionsOf("oa_audited")).toEqual(["oauth_client.put", "oauth_client.destroyed"]);

  await operator.rotateKeys({}, soon());
  const rotated = await db
    .selectFrom("auditEntries")
    .selectAll()
    .where("action", "=", "keys.rotated")
    .orderBy("id")
    .execute();
  expect(rotated).toMatchObject([{ service: "operator", reason: expect.stringMatching(/^kek_/) }]);
});

test("reveals to the account service with a caller's token of that scope alone, and not without an entry", async () => {
  const accountId = await vault.connectAccount();
  const request = { ...named, accountId, purpose: "a support case" };
  const scope = "credentials:reveal";
  const bearer = await tokenWith({ scope });
  const { values, credential } = await asAccount.revealCredential(request, soon(bearer));
  expect(Object.keys(values).sort()).toEqual(["access_token", "refresh_token"]);
  expect(credential).toMatchObject({ accountId, generation: 1n });
  expect((await entriesOf(accountId)).at(-1)).toMatchObject({
    ...{ action: "credential.revealed", service: "account", subject: "cli_1", purpose: "a support case" },
    ...{ externalUserId: "user-1", environment: "development" },
  });
  await asAccount.revealCredential(request, soon(await tokenWith({ scope: "*" })));

  const refused = async (code: string, token?: string, client = asAccount) =>
    expect(client.revealCredential(request, soon(token))).rejects.toMatchObject({ code });
  await refused("UNAUTHENTICATED");
  await refused("PERMISSION_DENIED", await tokenWith({ scope: "connect:*" }));
  const ofUser = { scope: "*", environment: whose.environment, external_user_id: "user-1" };
  await refused("PERMISSION_DENIED", await tokenWith(ofUser));
  await refused("NOT_FOUND", await tokenWith({ scope, project_id: "proj_2" }));
  for (const service of ["proxy", "operator", "gateway"] as const) {
    await refused("PERMISSION_DENIED", bearer, await vault.vault.as(service));
  }
  const silent = asAccount.revealCredential({ ...request, purpose: "" }, soon(bearer));
  await expect(silent).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });

  expect((await actionsOf(accountId)).filter((action) => action === "credential.revealed")).toHaveLength(2);
});

test("has an entry with the reason when a stored secret does not open: lease, refresh, reveal and export", async () => {
  const accountId = await vault.connectAccount();
  const { blob } = await vault.rowOf(accountId);
  const flipped = Buffer.from(blob ?? []);
  flipped[flipped.length - 1] = (flipped.at(-1) ?? 0) ^ 1;
  await db.updateTable("credentials").set({ blob: flipped }).where("accountId", "=", accountId).execute();
  const damaged = { code: "DATA_LOSS", reason: "TAMPERED" };
  await expect(vault.lease(accountId)).rejects.toMatchObject(damaged);
  const refresh = asAccount.refreshCredential({ ...named, accountId, generation: 0n }, soon());
  await expect(refresh).rejects.toMatchObject(damaged);
  const bearer = await tokenWith({ scope: "credentials:reveal" });
  const reveal = asAccount.revealCredential({ ...named, accountId, purpose: "any" }, soon(bearer));
  await expect(reveal).rejects.toMatchObject(damaged);
  const { publicKey } = generateKeyPairSync("x25519");
  const recipientJwk = JSON.stringify(publicKey.export({ format: "jwk" }));
  const exported = await Array.fromAsync(operator.exportCredentials({ recipientJwk }, soon()));
  expect(exported.find((one) => one.accountId === accountId)).toMatchObject({ error: "TAMPERED" });
  const actions = async () => (await actionsOf(accountId)).filter((action) => action === "credential.damaged").length;
  await until(async () => (await actions()) === 4);
  expect((await entriesOf(accountId)).at(-1)).toMatchObject({ reason: "TAMPERED", service: "vault" });
  expect(await actionsOf(accountId)).toContain("credential.exported");
  await vault.destroy(accountId);
});

test("throws what a change throws when the audit is not at fault, and writes no entry", async () => {
  const accountId = await vault.connectAccount();
  const before = await entriesOf(accountId);
  const change = (on: typeof db) =>
    changeAudited(
      on,
      on
        .updateTable("credentials")
        .set({ state: "NO STATE" as never })
        .where("accountId", "=", accountId)
        .returning(auditedAccount),
      { action: "credential.refreshed", actor: vaultItself },
    );
  await expect(change(db)).rejects.toMatchObject({ code: "23514" });
  const inTransaction = db.transaction().execute((transaction) => change(transaction));
  await expect(inTransaction).rejects.toMatchObject({ code: "23514" });
  expect(await entriesOf(accountId)).toEqual(before);
});

test("lets the vault's role add entries and checkpoints, and neither change nor delete them", async () => {
  await vault.connectAccount();
  for (const statement of [
    "update audit_entries set reason = 'x'",
    "delete from audit_entries",
    "truncate audit_entries cascade",
    "update audit_checkpoints set key_id = 'x'",
    "delete from audit_checkpoints",
    "insert into audit_pending values (1)",
    "update audit_pending set id = 1",
    "alter table audit_entries disable trigger all",
  ]) {
    await expect(sql.raw(statement).execute(db), statement).rejects.toThrow(/permission denied|must be owner/);
  }
});
