// Destroying credentials: what is left in the rows, what is refused afterwards, what the true provider is told, and what a
// refresh that is under way may still do.
import { expect, test } from "vitest";
import { ProviderRevocation } from "#proto/deputy/account/v1/accounts.ts";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { connectAccount, destroy, lease, rowOf, shim, provider } = vault;

const revocationOf = (accountId: string) =>
  vault.db.selectFrom("revocations").selectAll().where("accountId", "=", accountId).executeTakeFirst();

async function isRevoked(accountId: string): Promise<boolean> {
  return (await revocationOf(accountId))?.state === "DONE";
}

test("leaves nothing to open, refuses leases with ACCOUNT_REVOKED, and the provider takes the token no more", async () => {
  const accountId = await connectAccount();
  const { lease: before } = await lease(accountId);
  expect(await vault.callApi(before)).toBe(200);
  const requests = provider.stats.revocationRequests;
  const [receipt] = await destroy(accountId);
  expect(receipt).toMatchObject({
    accountId,
    externalUserId: "user-1",
    appSlug: "sandbox",
  });
  // The provider may be quicker than the answer.
  expect([ProviderRevocation.PENDING, ProviderRevocation.DONE]).toContain(receipt?.providerRevocation);
  expect(receipt?.destroyTime).toBeInstanceOf(Date);
  const gone = { blob: null, dataKeyId: null, wrappedDataKey: null, kekId: null };
  expect(await rowOf(accountId)).toMatchObject({ ...gone, state: "REVOKED", generation: 2n });
  await expect(lease(accountId)).rejects.toMatchObject({ code: "FAILED_PRECONDITION", reason: "ACCOUNT_REVOKED" });
  expect(await vault.credential(accountId)).toMatchObject({ state: CredentialState.REVOKED });
  await until(() => isRevoked(accountId));
  expect(provider.stats.revocationRequests).toBeGreaterThan(requests);
  expect(await vault.callApi(before)).toBe(401);
  expect(await revocationOf(accountId)).toMatchObject({ ...gone, state: "DONE" });
});

/** Receipts without their signatures: each issue has its own. */
async function destroyed(...accountIds: string[]) {
  return (await destroy(...accountIds)).map(({ jws: _, ...receipt }) => receipt);
}

test("gives a repeat the same receipt, and later what the provider answered", async () => {
  const accountId = await connectAccount();
  const gate = Promise.withResolvers<void>();
  shim.misbehave(async () => {
    await gate.promise;
    return undefined;
  });
  const [first] = await destroyed(accountId);
  expect(first).toMatchObject({ providerRevocation: ProviderRevocation.PENDING });
  expect(await destroyed(accountId)).toEqual([first]);
  gate.resolve();
  await until(() => isRevoked(accountId));
  expect(await destroyed(accountId)).toEqual([{ ...first, providerRevocation: ProviderRevocation.DONE }]);
});

test("destroys many at once, and leaves out what has no credential or is another project's or environment's", async () => {
  const accountIds = await Promise.all([connectAccount(), connectAccount(), connectAccount()]);
  expect(await destroy("apn_absent")).toEqual([]);
  for (const [projectId, environment] of [["proj_2", 1] as const, ["proj_1", 2] as const]) {
    const { receipts } = await vault.asAccount.destroyCredentials({ projectId, environment, accountIds }, soon());
    expect(receipts).toEqual([]);
  }
  expect((await lease(accountIds[0] ?? "")).lease?.generation).toBe(1n);
  const receipts = await destroy(...accountIds, "apn_absent");
  expect(receipts.map(({ accountId }) => accountId)).toEqual([...accountIds].sort());
});

test("queues nothing for keys, which no provider can revoke", async () => {
  const accountId = vault.newAccountId();
  const values = { api_key: "sandbox-key-12345678" };
  const material = { $case: "fields", value: { values } } as const;
  await vault.asAccount.storeCredential({ ...whose, accountId, appSlug: "sandbox_header_key", material }, soon());
  expect(await destroy(accountId)).toMatchObject([{ providerRevocation: ProviderRevocation.NOT_APPLICABLE }]);
  expect(await revocationOf(accountId)).toBeUndefined();
});

test.each([
  ["was destroyed", () => vault.asAccount.destroyOauthClient({ projectId: "proj_1", oauthAppId: "oa_1" }, soon())],
  ["another one took the place of", () => vault.putClient(["a secret"], false, "another-client")],
])("asks the provider again when it fails, and with the client that %s meanwhile", async (_, change) => {
  // The one failure is to be this account's.
  const pending = () => vault.db.selectFrom("revocations").select("id").where("state", "=", "PENDING").execute();
  await until(async () => (await pending()).length === 0);
  const accountId = await connectAccount();
  const { lease: before } = await lease(accountId);
  let failed = 0;
  shim.misbehave((path) => {
    if (path !== "/token/revocation" || failed > 0) return undefined;
    failed += 1;
    return { status: 503, body: "{}" };
  });
  await destroy(accountId);
  await change();
  expect((await revocationOf(accountId))?.credentialGeneration).toBeNull();
  await until(async () => (await revocationOf(accountId))?.lastError === "HTTP_503");
  await until(() => isRevoked(accountId), 15_000);
  expect(await vault.callApi(before)).toBe(401);
  await vault.putClient();
});

test("gives up after seven days, says so for ever, and wipes the token", async () => {
  const accountId = await connectAccount();
  const gate = Promise.withResolvers<void>();
  shim.misbehave(async () => {
    await gate.promise;
    return { status: 503, body: "{}" };
  });
  await destroy(accountId);
  await vault.db
    .updateTable("revocations")
    .set({ expireTime: new Date(0) })
    .where("accountId", "=", accountId)
    .execute();
  gate.resolve();
  // At once, or 3 s later where the attempt at work had read the row before its time was set back.
  await until(async () => (await revocationOf(accountId))?.state === "FAILED", 15_000);
  expect(await revocationOf(accountId)).toMatchObject({ blob: null, lastError: "HTTP_503" });
  expect(await destroy(accountId)).toMatchObject([{ providerRevocation: ProviderRevocation.FAILED }]);
});

test("ends a revocation whose record does not open any more", async () => {
  const accountId = await connectAccount();
  const gate = Promise.withResolvers<void>();
  shim.misbehave(async () => {
    await gate.promise;
    return { status: 503, body: "{}" };
  });
  await destroy(accountId);
  const row = vault.db.updateTable("revocations").where("accountId", "=", accountId);
  await until(() => shim.requests.at(-1) === "/token/revocation");
  await row.set({ blob: Buffer.alloc(200), expireTime: new Date(0) }).execute();
  gate.resolve();
  await until(async () => (await revocationOf(accountId))?.state === "FAILED", 15_000);
  expect(await revocationOf(accountId)).toMatchObject({ blob: null, lastError: "UNKNOWN_VERSION" });
});

test("a refresh that is under way does not bring the account back, and its new tokens are revoked too", async () => {
  const accountId = await connectAccount();
  const held = shim.hold("/token");
  await vault.endTokenIn(accountId, -1);
  const waiting = lease(accountId);
  await held.arrived;
  // The provider is not told yet, so that the refresh in flight brings true tokens.
  const before = provider.stats.tokenRequests.refresh_token?.success ?? 0;
  const revocations = Promise.withResolvers<void>();
  shim.misbehave(async (path) => {
    if (path === "/token/revocation") await revocations.promise;
    return undefined;
  });
  await destroy(accountId);
  held.letGo();
  await expect(waiting).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  expect(provider.stats.tokenRequests.refresh_token?.success).toBe(before + 1);
  expect(await rowOf(accountId)).toMatchObject({ state: "REVOKED", blob: null, generation: 2n });
  const outbox = () =>
    vault.db.selectFrom("revocations").select(["state"]).where("accountId", "=", accountId).execute();
  expect(await outbox()).toHaveLength(2);
  revocations.resolve();
  await until(async () => (await outbox()).every(({ state }) => state === "DONE"));
});

test("destroys what cannot be read, and tries for seven days to tell the provider", async () => {
  const accountId = await connectAccount();
  await vault.db
    .updateTable("credentials")
    .set({ blob: Buffer.alloc(200, 1) })
    .where("accountId", "=", accountId)
    .execute();
  await destroy(accountId);
  expect(await rowOf(accountId)).toMatchObject({ state: "REVOKED", blob: null });
  await until(async () => (await revocationOf(accountId))?.lastError === "WRONG_KEY");
  // It may be that a backup mends it, for as long as any other failure.
  expect(await destroy(accountId)).toMatchObject([{ providerRevocation: ProviderRevocation.PENDING }]);
  const row = vault.db.updateTable("revocations").where("accountId", "=", accountId);
  await row.set({ expireTime: new Date(0) }).execute();
  await until(async () => (await revocationOf(accountId))?.state === "FAILED", 15_000);
  expect(await revocationOf(accountId)).toMatchObject({ blob: null, lastError: "WRONG_KEY" });
  expect(await destroy(accountId)).toMatchObject([{ providerRevocation: ProviderRevocation.FAILED }]);
});

test("says at once that the provider cannot be told where the project has no client any more", async () => {
  const accountId = await connectAccount();
  await vault.asAccount.destroyOauthClient({ projectId: "proj_1", oauthAppId: "oa_1" }, soon());
  expect(await destroy(accountId)).toMatchObject([{ providerRevocation: ProviderRevocation.FAILED }]);
  expect(await revocationOf(accountId)).toMatchObject({ blob: null, lastError: "OAUTH_CLIENT_MISSING" });
  const entries = vault.db.selectFrom("auditEntries").select(["action", "reason"]).where("accountId", "=", accountId);
  const failed = { action: "credential.revocation_failed", reason: "OAUTH_CLIENT_MISSING" };
  expect(await entries.execute()).toContainEqual(failed);
  await vault.putClient();
});

test("hands the outbox what the row held, as it lay there", async () => {
  const accountId = await connectAccount();
  const { blob, dataKeyId, wrappedDataKey, kekId, generation } = await rowOf(accountId);
  const gate = Promise.withResolvers<void>();
  shim.misbehave(async () => {
    await gate.promise;
    return undefined;
  });
  await destroy(accountId);
  const taken = { blob, dataKeyId, wrappedDataKey, kekId, credentialGeneration: generation, state: "PENDING" };
  expect(await revocationOf(accountId)).toMatchObject(taken);
  gate.resolve();
  await until(() => isRevoked(accountId));
});

test("takes no new credential for a destroyed account", async () => {
  const accountId = await connectAccount();
  await destroy(accountId);
  const material = { $case: "grant", value: { accessToken: "another" } } as const;
  const stored = vault.asAccount.storeCredential({ ...whose, accountId, appSlug: "sandbox", material }, soon());
  await expect(stored).rejects.toMatchObject({ code: "FAILED_PRECONDITION", reason: "ACCOUNT_REVOKED" });
});

test("the database itself keeps a destroyed row from holding a secret, and no role of the service deletes rows", async () => {
  const accountId = await connectAccount();
  const update = vault.db.updateTable("credentials").where("accountId", "=", accountId);
  await expect(update.set({ state: "REVOKED" }).execute()).rejects.toThrow("check constraint");
  await expect(update.set({ wrappedDataKey: null }).execute()).rejects.toThrow("check constraint");
  for (const table of ["credentials", "oauthClients", "revocations"] as const) {
    await expect(vault.db.deleteFrom(table).execute()).rejects.toThrow("permission denied");
  }
});
