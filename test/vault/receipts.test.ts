// Receipts: what they say, that they verify offline with the public key alone, and what is refused. The command as operators
// run it, and the requests by which it puts revocations back after a restore.
import { generateKeyPairSync } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CompactSign, SignJWT } from "jose";
import { beforeAll, expect, test } from "vitest";
import { readSigningKey, type SigningKey } from "#libs/signing-key.ts";
import { runReceiptCommand } from "../../services/vault/receipt-command.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { destroy, connectAccount, signingKeyFile } = vault;
const at = (name: string) => join(vault.directory, name);
const keyFile = at("receipts.jwk");
let signingKey: SigningKey;
let good = "";

beforeAll(async () => {
  await writeFile(keyFile, (await runReceiptCommand(["public-key", signingKeyFile])).text);
  signingKey = await readSigningKey("the key", await readFile(signingKeyFile, "utf8"));
  const [receipt] = await destroy(await connectAccount());
  good = receipt?.jws ?? "";
});

async function run(command: "verify" | "requests", lines: readonly string[], key = keyFile) {
  await writeFile(at("receipts.txt"), `${lines.join("\n")}\n`);
  return runReceiptCommand([command, at("receipts.txt"), "--key", key]);
}

const payloadOf = (jws: string) => JSON.parse(Buffer.from(jws.split(".")[1] ?? "", "base64url").toString());
const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
const header = (more: object = {}) => ({ alg: "EdDSA", kid: signingKey.keyId, typ: "deputy-receipt+jwt", ...more });

test("a receipt says who, what, when and what the provider knows, and holds no secret", async () => {
  const accountId = await connectAccount();
  const [receipt] = await destroy(accountId);
  const claims = payloadOf(receipt?.jws ?? "");
  expect(claims).toEqual({
    iss: "deputy-vault",
    iat: expect.any(Number),
    project_id: "proj_1",
    environment: "development",
    external_user_id: "user-1",
    account_id: accountId,
    app_slug: "sandbox",
    destroy_time: receipt?.destroyTime?.toISOString(),
    destroyed: ["access_token", "refresh_token"],
    generation: "1",
    provider_revocation: expect.stringMatching(/^(PENDING|DONE)$/),
  });
  await until(async () => payloadOf((await destroy(accountId))[0]?.jws ?? "").provider_revocation === "DONE");
});

test("names the kinds of what was destroyed, and none where they were never noted", async () => {
  const [keys, old, refreshed] = [vault.newAccountId(), await connectAccount(), await connectAccount()];
  const material = { $case: "fields", value: { values: { api_key: "sandbox-key-12345678" } } } as const;
  await vault.asAccount.storeCredential({ ...whose, accountId: keys, appSlug: "sandbox_header_key", material }, soon());
  // As they were before kinds were noted.
  const both = vault.db.updateTable("credentials").where("accountId", "in", [old, refreshed]);
  await both.set({ secretKinds: [] }).execute();
  await vault.vault.refresher.refresh(await vault.rowOf(refreshed));
  const receipts = await destroy(keys, old, refreshed);
  const claims = new Map(receipts.map(({ accountId, jws }) => [accountId, payloadOf(jws)]));
  expect(claims.get(keys)).toMatchObject({ destroyed: ["fields"], provider_revocation: "NOT_APPLICABLE" });
  expect(claims.get(old)).toMatchObject({ destroyed: [] });
  expect(claims.get(refreshed)).toMatchObject({ destroyed: ["access_token", "refresh_token"], generation: "2" });
});

test("the command verifies receipts by the public key alone, as a JSON Web Key or PEM", async () => {
  const { text, good: isGood } = await run("verify", [good, "", good]);
  expect(isGood).toBe(true);
  expect(text).toContain(`${payloadOf(good).account_id} of "user-1", sandbox; proj_1 development; destroyed 20`);
  expect(text).toContain("access_token refresh_token, generation 1; provider ");
  expect(text).toContain("2 good, 0 bad");
  const pem = generateKeyPairSync("ed25519").publicKey.export({ type: "spki", format: "pem" });
  await writeFile(at("other.pem"), pem);
  expect(await run("verify", [good], at("other.pem"))).toMatchObject({ good: false });
  const both = ["verify", at("receipts.txt"), "--key", at("other.pem"), "--key", keyFile];
  expect(await runReceiptCommand(both)).toMatchObject({ good: true });
});

test.each<[string, () => string | Promise<string>, string]>([
  [
    "whose payload was changed",
    () => {
      const [head, , signature] = good.split(".");
      return [head, encode({ ...payloadOf(good), account_id: "apn_other" }), signature].join(".");
    },
    "signature verification failed",
  ],
  [
    "of another key under this key's id",
    () => new SignJWT(payloadOf(good)).setProtectedHeader(header()).sign(generateKeyPairSync("ed25519").privateKey),
    "signature verification failed",
  ],
  ["of a key that is not known", () => signed(header({ kid: "another" })), "no applicable key found"],
  ["without a signature", () => `${encode(header({ alg: "none" }))}.${good.split(".")[1]}.`, '"alg"'],
  ["of another type", () => signed(header({ typ: "JWT" })), '"typ"'],
  ["of another issuer", () => signed(header(), { iss: "deputy" }), '"iss"'],
  ["that lacks a fact", () => signed(header(), { account_id: undefined }), "no receipt's"],
  ["that is no JWS", () => "not a receipt", "Invalid Compact JWS"],
])("refuses a receipt %s, and names its line", async (_, forge, reason) => {
  const { text, good: isGood } = await run("verify", [good, await forge()]);
  expect(isGood).toBe(false);
  expect(text).toMatch(/line 2: BAD: /);
  expect(text).toContain(reason);
  expect(text).toContain("1 good, 1 bad");
  expect((await run("requests", [good, await forge()])).good).toBe(false);
});

function signed(head: ReturnType<typeof header>, more: object = {}): Promise<string> {
  const payload = Buffer.from(JSON.stringify({ ...payloadOf(good), ...more }));
  return new CompactSign(payload).setProtectedHeader(head).sign(signingKey.privateKey);
}

test("refuses an empty list, a key file that holds no public key, and unknown commands", async () => {
  await expect(run("verify", [""])).rejects.toThrow("holds no receipts");
  await writeFile(at("no.jwk"), "{}");
  await expect(run("verify", [good], at("no.jwk"))).rejects.toThrow("no.jwk holds no public Ed25519 key");
  await expect(runReceiptCommand(["sign", "x"])).rejects.toThrow("usage:");
});

test("an operator destroys again, by the kept receipts, what a restored backup has brought back", async () => {
  const accountIds = [await connectAccount(), await connectAccount()];
  const rows = await vault.db.selectFrom("credentials").selectAll().where("accountId", "in", accountIds).execute();
  const receipts = await destroy(...accountIds);
  for (const row of rows) {
    await vault.db.updateTable("credentials").set(row).where("accountId", "=", row.accountId).execute();
  }
  expect((await vault.lease(accountIds[0] ?? "")).lease?.generation).toBe(1n);
  const { text } = await run(
    "requests",
    [...receipts, ...receipts].map(({ jws }) => jws),
  );
  const asked = text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(asked).toEqual([
    { project_id: "proj_1", environment: "ENVIRONMENT_DEVELOPMENT", account_ids: [...accountIds].sort() },
  ]);
  const { projectId, environment } = whose;
  const request = { projectId, environment, accountIds: asked[0].account_ids };
  const operator = await vault.vault.as("operator");
  expect((await operator.destroyCredentials(request, soon())).receipts).toHaveLength(2);
  for (const accountId of accountIds) {
    await expect(vault.lease(accountId)).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  }
  const proxy = vault.asProxy.destroyCredentials(request, soon());
  await expect(proxy).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
});
