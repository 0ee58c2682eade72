// Export and import: between two vaults with keys and databases of their own, from another system's records, and under the
// eyes of whoever reads the tables.
import { exportJWK, generateKeyPair, type JWK } from "jose";
import { expect, test } from "vitest";
import type { Client } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { ExportCredentialsResponse } from "#proto/deputy/vault/v1/operations.ts";
import { vaultItself } from "../../services/vault/audit-entries.ts";
import { exportCredentials } from "../../services/vault/export.ts";
import { readMapping } from "../../services/vault/import-mapping.ts";
import { decryptRecord, encryptRecord, readImportKey, readRecipient } from "../../services/vault/jwe.ts";
import { insertKeys, keyOf } from "./rotated-rows.ts";
import { soon, vaultFixture, whose } from "./vault-fixture.ts";

type Vault = Client<typeof CredentialVaultDefinition>;

async function keyPair(algorithm: string, options: object = {}): Promise<{ publicJwk: string; privateJwk: string }> {
  const { publicKey, privateKey } = await generateKeyPair(algorithm, { ...options, extractable: true });
  const text = async (key: typeof publicKey) =>
    JSON.stringify({ ...((await exportJWK(key)) as JWK), kid: "operator-1" });
  return { publicJwk: await text(publicKey), privateJwk: await text(privateKey) };
}

const keys = await keyPair("ECDH-ES+A256KW");
const importKey = await readImportKey(keys.privateJwk);
const mapping = readMapping("docs/import-mapping.yaml");
const from = await vaultFixture();
const to = await vaultFixture();
const importing = await to.startVault({ importFormats: { importKey, mapping }, worker: false });
const [exporter, importer] = [await from.vault.as("operator"), await importing.as("operator")];
const long = () => ({ deadlineMs: Date.now() + 60_000 });

function exportAll(recipientJwk = keys.publicJwk, more = {}): Promise<ExportCredentialsResponse[]> {
  return Array.fromAsync(exporter.exportCredentials({ recipientJwk, ...more }, long()));
}

async function importAll(records: readonly string[], { shadow = false, into = importer as Vault } = {}) {
  async function* requests() {
    for (const record of records) yield { record, shadow };
  }
  return Array.fromAsync(into.importCredentials(requests(), long()));
}

const recipient = await readRecipient(keys.publicJwk, "key");
const grant = {
  schema: "deputy-credential/1",
  project_id: "proj_1",
  environment: "development",
  external_user_id: "user-1",
};
/** A record as an export has it, for this vault. */
const encrypted = (record: object) => encryptRecord(recipient, { ...grant, ...record });
const ok = (accountId: string) => ({ accountId, error: "" });

test("moves accounts from one vault to another, where they are leased with the same credential", async () => {
  const oauthAccount = await from.connectAccount();
  const [keyAccount = ""] = await insertKeys(
    { db: from.db, secrets: from.vault.secrets },
    { ...whose, prefix: "move", count: 1 },
  );
  const exported = await exportAll();
  expect(exported.map(({ accountId }) => accountId).sort()).toEqual([keyAccount, oauthAccount].sort());
  const answers = await importAll(exported.map(({ jwe }) => jwe));
  expect(answers).toEqual(exported.map(({ accountId }) => ok(accountId)));
  for (const accountId of [oauthAccount, keyAccount]) {
    const [here, there] = [(await from.lease(accountId)).lease, (await to.lease(accountId)).lease];
    expect(there?.headers).toEqual(here?.headers);
    const [before, after] = [await from.rowOf(accountId), await to.rowOf(accountId)];
    expect(after.kekId).not.toBe(before.kekId);
    expect(after.blob).not.toEqual(before.blob);
    expect(after.expireTime?.getTime() ?? 0).toBeCloseTo(before.expireTime?.getTime() ?? 0, -3);
  }
  // A repeat finds what it brought.
  expect(await importAll(exported.map(({ jwe }) => jwe))).toEqual(answers);
  expect((await to.rowOf(oauthAccount)).generation).toBe(1n);
});

test("exports to RSA and X25519 keys too, by project and environment", async () => {
  const accountId = await from.connectAccount();
  for (const pair of [await keyPair("RSA-OAEP-256"), await keyPair("ECDH-ES+A256KW", { crv: "X25519" })]) {
    const jwe = (await exportAll(pair.publicJwk)).find((exported) => exported.accountId === accountId)?.jwe ?? "";
    const formats = { importKey: await readImportKey(pair.privateJwk) };
    const other = await to.startVault({ importFormats: formats, worker: false });
    expect(await importAll([jwe], { into: await other.as("operator") })).toEqual([ok(accountId)]);
    await other.stop();
  }
  expect(await exportAll(keys.publicJwk, { projectId: "proj_2" })).toEqual([]);
  expect(await exportAll(keys.publicJwk, { environment: 2 })).toEqual([]);
  expect((await exportAll(keys.publicJwk, { projectId: "proj_1", environment: 1 })).length).toBeGreaterThan(0);
});

test("encrypts to no private key, to none that is too weak, and to nothing that is no key", async () => {
  const short = { kty: "RSA", e: "AQAB", n: Buffer.alloc(128, 0xab).toString("base64url") };
  for (const jwk of [keys.privateJwk, "{}", "not json", "[]", '{"kty":"oct","k":"AAAA"}', JSON.stringify(short)]) {
    const refused = exportAll(jwk);
    await expect(refused, jwk.slice(0, 20)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await expect(refused).rejects.toThrow(/^recipient_jwk: [a-z]/);
  }
  expect(from.vault.lines.join("")).not.toContain(JSON.parse(keys.privateJwk).d);
});

test("names a credential that cannot be opened, and exports the others", async () => {
  const [damaged, sound] = [await from.connectAccount(), await from.connectAccount()];
  const { blob } = await from.rowOf(damaged);
  const put = (value: Buffer | null) =>
    from.db.updateTable("credentials").set({ blob: value }).where("accountId", "=", damaged).execute();
  await put((await from.rowOf(sound)).blob);
  const exported = await exportAll();
  expect(exported.find(({ accountId }) => accountId === damaged)).toMatchObject({ jwe: "", error: "WRONG_KEY" });
  expect(exported.find(({ accountId }) => accountId === sound)).toMatchObject({ error: "" });
  await put(blob);
});

test("answers each record that it refuses, in order, naming the field and never a value", async () => {
  const good = (id: string) =>
    encrypted({ account_id: id, app_slug: "sandbox_header_key", fields: { api_key: keyOf(id) } });
  const other = await readRecipient((await keyPair("ECDH-ES+A256KW")).publicJwk, "key");
  const first = await good("apn_good_1");
  const secret = "sandbox-token-never-shown";
  const oauth = { account_id: "apn_bad", app_slug: "sandbox", oauth_app_id: "oa_1", access_token: secret };
  const cases: [record: string, error: RegExp][] = [
    [await encryptRecord(other, {}), /^record: cannot be opened/],
    [first.replace(/.{6}$/, "AAAAAA"), /^record: cannot be opened/],
    [await encryptRecord(recipient, {}), /^schema: must be deputy-credential\/1$/],
    [
      await encrypted({ account_id: "apn_bad", app_slug: "absent" }),
      /^app_slug: is neither in this vault's catalog nor an app of the project$/,
    ],
    [await encrypted({ ...oauth, access_token: 7 }), /^access_token: must be a text$/],
    [await encrypted({ ...oauth, access_token: undefined }), /^access_token: is required$/],
    [await encrypted({ ...oauth, external_user_id: "" }), /^external_user_id: is required$/],
    [await encrypted({ ...oauth, account_id: "apn\u0000bad" }), /^account_id: has control characters$/],
    [await encrypted({ ...oauth, expire_time: secret }), /^expire_time: must be a time/],
    [await encrypted({ ...oauth, environment: secret }), /^environment: must be development or production$/],
    [
      await encrypted({ ...oauth, refresh_token: secret, oauth_app_id: "oa_absent" }),
      /^oauth_app_id: is not an OAuth client/,
    ],
    [await encrypted({ ...oauth, app_slug: "sandbox_header_key" }), /^fields\.api_key: |^access_token: /],
    [
      await encrypted({ account_id: "apn_bad", app_slug: "sandbox_header_key", fields: { api_key: secret, x: "y" } }),
      /^fields: has a name/,
    ],
    [`{"credentials": "${secret}`, /^record: is not JSON$/],
    ["[]", /^record: is not a JSON object$/],
    [JSON.stringify({ provider_config_key: secret }), /^app_slug: provider_config_key has a value that the mapping/],
  ];
  const answers = await importAll([first, ...cases.map(([record]) => record), await good("apn_good_2")]);
  expect(answers[0]).toEqual(ok("apn_good_1"));
  expect(answers.at(-1)).toEqual(ok("apn_good_2"));
  for (const [index, [, error]] of cases.entries()) {
    const answer = answers[index + 1];
    expect(answer).toMatchObject({ accountId: "", error: expect.stringMatching(error) });
    expect(answer?.error).not.toContain(secret);
  }
  expect(
    await to.db.selectFrom("credentials").select("accountId").where("accountId", "like", "apn%bad").execute(),
  ).toEqual([]);
});

test("says what is not set up", async () => {
  const without = await to.vault.as("operator");
  const [sealed, plain] = await importAll([await encrypted({}), "{}"], { into: without });
  expect(sealed?.error).toMatch(/^record: .*DEPUTY_IMPORT_KEY_FILE/);
  expect(plain?.error).toMatch(/^record: .*DEPUTY_IMPORT_MAPPING_FILE/);
});

test("takes another system's records by a mapping file", async () => {
  const token = "sandbox-token-of-elsewhere";
  const oauth = {
    ...{ connection_id: "c1", provider_config_key: "google-mail", end_user: { id: "user-1" } },
    metadata: { deputy_account_id: "apn_mapped_1" },
    credentials: {
      ...{ type: "OAUTH2", access_token: token, refresh_token: "sandbox-token-refresh" },
      ...{ expires_at: Math.floor(Date.now() / 1000) + 3600, raw: { scope: "read  write" } },
    },
  };
  const byKey = {
    ...{ provider_config_key: "key-app", end_user: { id: "user-1" }, metadata: { deputy_account_id: "apn_mapped_2" } },
    credentials: { apiKey: keyOf("mapped") },
  };
  const answers = await importAll([JSON.stringify(oauth), JSON.stringify(byKey)]);
  expect(answers).toEqual([ok("apn_mapped_1"), ok("apn_mapped_2")]);
  expect((await to.lease("apn_mapped_1")).lease?.headers[0]?.value).toBe(`Bearer ${token}`);
  expect((await to.lease("apn_mapped_2")).lease?.headers[0]?.value).toBe(keyOf("mapped"));
  const row = await to.rowOf("apn_mapped_1");
  expect(row).toMatchObject({ scopes: ["read", "write"], oauthAppId: "oa_1", externalUserId: "user-1" });
  expect(Math.abs((row.expireTime?.getTime() ?? 0) - Date.now() - 3_600_000)).toBeLessThan(10_000);
});

test("never puts an old record in the place of a live credential, nor gives a destroyed account a new one", async () => {
  const live = await to.connectAccount();
  const { generation } = await to.rowOf(live);
  const record = { account_id: live, app_slug: "sandbox", oauth_app_id: "oa_1", access_token: "sandbox-token-old" };
  const refused = async (more: object, shadow = false) => {
    const [answer] = await importAll([await encrypted({ ...record, refresh_token: "sandbox-token-older", ...more })], {
      shadow,
    });
    return answer?.error;
  };
  expect(await refused({})).toMatch(/^account_id: has a live credential/);
  expect(await refused({}, true)).toMatch(/^account_id: has a live credential/);
  expect(await refused({ external_user_id: "user-2" })).toMatch(/^account_id: belongs to another/);
  expect((await to.rowOf(live)).generation).toBe(generation);
  await to.destroy(live);
  expect(await refused({})).toMatch(/^account_id: was revoked/);
});

test("leases a shadowed grant while it is valid, never refreshes it, and refreshes it when it is cut over", async () => {
  const source = await to.connectAccount();
  const own = await readRecipient(keys.publicJwk, "key");
  const [exported] = await Array.fromAsync(
    exportCredentials(
      { db: to.db, secrets: to.vault.secrets },
      { projectId: "proj_1" },
      { recipient: own, actor: vaultItself },
    ),
  ).then((all) => all.filter(({ accountId }) => accountId === source));
  const value = JSON.parse(await decryptRecord(importKey, exported && "jwe" in exported ? exported.jwe : ""));
  const accountId = "apn_shadow";
  const record = await encrypted({ ...value, account_id: accountId });

  expect(await importAll([record], { shadow: true })).toEqual([ok(accountId)]);
  expect(await to.callApi((await to.lease(accountId)).lease)).toBe(200);
  expect(await to.rowOf(accountId)).toMatchObject({ shadow: true, nextRefreshTime: null });
  const before = to.tokenRequests();
  await to.endTokenIn(accountId, 2);
  expect((await to.lease(accountId)).lease?.refreshed).toBe(false);
  await to.endTokenIn(accountId, -1);
  await expect(to.lease(accountId)).rejects.toMatchObject({ code: "FAILED_PRECONDITION", reason: "SHADOWED" });
  const named = { projectId: "proj_1", environment: whose.environment, accountId };
  await expect(to.asAccount.refreshCredential(named, soon())).rejects.toMatchObject({ reason: "SHADOWED" });
  expect(to.tokenRequests()).toBe(before);

  expect(await importAll([record])).toEqual([ok(accountId)]);
  expect((await to.rowOf(accountId)).shadow).toBe(false);
  await to.endTokenIn(accountId, -1);
  expect((await to.lease(accountId)).lease?.refreshed).toBe(true);
  expect(to.tokenRequests()).toBe(before + 1);
  const imported = to.db.selectFrom("auditEntries").select("reason").where("action", "=", "credential.imported");
  const entries = await imported.where("accountId", "=", accountId).orderBy("id").execute();
  expect(entries.map(({ reason }) => reason)).toEqual(["SHADOW", "CUT_OVER"]);
});

test("destroys a shadowed grant here and leaves it alive at the provider, where another system uses it", async () => {
  const accountId = "apn_shadow_2";
  const record = { account_id: accountId, app_slug: "sandbox", oauth_app_id: "oa_1" };
  const tokens = { access_token: "sandbox-token-a", refresh_token: "sandbox-token-r" };
  await importAll([await encrypted({ ...record, ...tokens })], { shadow: true });
  const [receipt] = await to.destroy(accountId);
  expect(receipt).toMatchObject({ accountId, providerRevocation: 1 });
  const queued = to.db.selectFrom("revocations").select("id").where("accountId", "=", accountId).execute();
  expect(await queued).toEqual([]);
});

test("streams four hundred records, and opens no row before somebody reads that far", async () => {
  const accountIds = await insertKeys(
    { db: from.db, secrets: from.vault.secrets },
    { ...whose, prefix: "stream", count: 400 },
  );
  let opened = 0;
  const counting = {
    ...from.vault.secrets,
    open: <Value>(...parameters: Parameters<typeof from.vault.secrets.open>) => {
      opened += 1;
      return from.vault.secrets.open<Value>(...parameters);
    },
  };
  const pulled = exportCredentials({ db: from.db, secrets: counting }, {}, { recipient, actor: vaultItself });
  for (let index = 0; index < 10; index += 1) await pulled.next();
  expect(opened).toBe(10);
  await pulled.return(undefined);

  async function* requests() {
    for await (const { accountId, jwe } of exporter.exportCredentials({ recipientJwk: keys.publicJwk }, long())) {
      if (accountId.startsWith("apn_stream_")) yield { record: jwe };
    }
  }
  const answers = await Array.fromAsync(importer.importCredentials(requests(), long()));
  expect(answers.map(({ accountId }) => accountId).sort()).toEqual([...accountIds].sort());
  expect(answers.filter(({ error }) => error !== "")).toEqual([]);
  const last = accountIds.at(-1) ?? "";
  expect((await to.lease(last)).lease?.headers[0]?.value).toBe(keyOf(last));
}, 60_000);

test("lets nobody but the operator export or import", async () => {
  for (const service of ["account", "proxy", "gateway"] as const) {
    const client = await importing.as(service);
    const exported = Array.fromAsync(client.exportCredentials({ recipientJwk: keys.publicJwk }, soon()));
    await expect(exported, service).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
    await expect(importAll(["{}"], { into: client }), service).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
  }
});
