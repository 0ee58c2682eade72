// The account service with the true vault as a process of its own and the sandbox provider: what the recording vault only
// claims holds with the real one.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { createClient } from "#libs/rpc-client.ts";
import { readPublicKey } from "#libs/signing-key.ts";
import { ProviderRevocation } from "#proto/deputy/account/v1/accounts.ts";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { failure, startChild } from "../../dev/child.ts";
import { freePorts } from "../../dev/ports.ts";
import { answerConsent } from "../../dev/sandbox-consent.ts";
import { startSandboxProvider } from "../../dev/sandbox-provider.ts";
import { prepareState, readSecret } from "../../dev/state.ts";
import { receiptVerifier } from "../../services/vault/receipts.ts";
import { createTestDatabase } from "../support/postgres.ts";
import { testTls } from "../support/tls.ts";
import {
  binding,
  call,
  collect,
  development,
  newConnectToken,
  newKeyAccount,
  newOauthApp,
  newProject,
  startAccount,
} from "./harness.ts";

const ports = await freePorts();
const directory = mkdtempSync(join(tmpdir(), "deputy-account-"));
const state = await prepareState(directory, ports);
const vaultDatabase = await createTestDatabase("vault");
const sandboxTls = await testTls("sandbox");
const sandbox = await startSandboxProvider({
  port: ports.sandbox,
  hostname: "localhost",
  clientId: "acme-client",
  clientSecret: "acme-secret",
  redirectUris: ["https://deputy.example:8443/oauth/callback"],
  accessTokenSeconds: 600,
  tls: { key: sandboxTls.key, cert: sandboxTls.certificate },
});
const vault = await startVault();
const account = await startAccount(`127.0.0.1:${ports.vault}`);
afterAll(async () => {
  await vault.stop();
  await sandbox.stop();
  rmSync(directory, { recursive: true, force: true });
});
const { api, gateway, owner } = account;
const acme = await newProject(account);
await newOauthApp(account, acme.projectId);

async function startVault() {
  const tls = await testTls("vault");
  const file = (name: string, text: string) => {
    const path = join(directory, name);
    writeFileSync(path, text, { mode: 0o600 });
    return path;
  };
  const child = startChild({
    name: "vault",
    file: "services/vault/main.ts",
    logDirectory: state.logs,
    cacheDirectory: state.compileCache,
    settings: {
      DEPUTY_DEVELOPMENT: "true",
      DEPUTY_TRUST_DOMAIN: tls.trustDomain,
      DEPUTY_TLS_CA_FILE: file("ca.pem", tls.ca),
      DEPUTY_TLS_CERTIFICATE_FILE: file("vault.pem", tls.certificate ?? ""),
      DEPUTY_TLS_KEY_FILE: file("vault-key.pem", tls.key ?? ""),
      DEPUTY_CATALOG_DIRECTORY: state.catalog,
      DEPUTY_VAULT_INTERNAL_ADDRESS: `127.0.0.1:${ports.vault}`,
      DEPUTY_ACCOUNT_ADDRESS: `127.0.0.1:${ports.account}`,
      DEPUTY_DATABASE_URL: vaultDatabase.runtime.url,
      DEPUTY_DATABASE_PASSWORD_FILE: file("vault-password", vaultDatabase.runtime.password),
      DEPUTY_KEYRING_FILE: state.keyringFile,
      DEPUTY_SIGNING_KEY_FILE: state.vaultSigningKeyFile,
      DEPUTY_EGRESS_TEST_ALLOW: `localhost:${ports.sandbox}`,
      DEPUTY_EGRESS_CA_FILE: join(directory, "ca.pem"),
    },
  });
  await Promise.race([failure(child), untilServing()]);
  return child;
}

async function untilServing(): Promise<void> {
  const tls = await testTls("operator");
  const operator = createClient(CredentialVaultDefinition, {
    address: `127.0.0.1:${ports.vault}`,
    tls,
    service: "vault",
  });
  for (const giveUpMs = Date.now() + 20_000; ; await sleep(100)) {
    const answer = await operator.getVaultStatus({}, { deadlineMs: Date.now() + 2_000 }).catch((error) => error);
    if (!(answer instanceof Error)) break;
    if (Date.now() > giveUpMs) throw new Error(`the vault does not serve: ${answer.message}`);
  }
  operator.close();
}

/** Walks a user through the provider and gives the redirect's parameters. */
async function consent(token: string, name: string, more: { decision?: "allow" | "deny"; accountId?: string } = {}) {
  const { decision = "allow", accountId = "" } = more;
  const started = await api.startConnection({ appSlug: "sandbox", browserBinding: binding, accountId }, call(token));
  const { authorizationUrl } = started;
  const back = new URL(await answerConsent({ authorizationUrl, decision, name, ca: sandboxTls.ca }));
  const parameter = (key: string) => back.searchParams.get(key) ?? "";
  return {
    state: parameter("state"),
    code: parameter("code"),
    error: parameter("error"),
    issuer: parameter("iss"),
    browserBinding: binding,
  };
}

const connect = async (externalUserId: string) => {
  const redirect = await consent(await newConnectToken(account, acme.token, { externalUserId }), externalUserId);
  return { redirect, ...(await gateway.completeConnection(redirect, call())) };
};

test("connects an account through the provider, and a reload exchanges nothing again", async () => {
  const { connection, redirect } = await connect("Ann");
  expect(connection).toMatchObject({ state: ConnectionState.SUCCEEDED, error: "" });
  const accountId = connection?.accountId ?? "";
  const { account: made } = await api.getAccount({ environment: development, accountId }, call(acme.token));
  expect(made).toMatchObject({
    name: "Ann",
    externalUserId: "Ann",
    authorizedScopes: expect.arrayContaining(["read"]),
  });
  const exchanges = JSON.stringify(sandbox.stats.tokenRequests);
  expect((await gateway.completeConnection(redirect, call())).connection).toEqual(connection);
  expect(JSON.stringify(sandbox.stats.tokenRequests)).toBe(exchanges);
});

test("asks the provider once when a reload comes after a failure between the exchange and the account", async () => {
  const redirect = await consent(await newConnectToken(account, acme.token, { externalUserId: "crash" }), "Crash");
  await owner.query("alter table accounts add constraint broken check (external_user_id <> 'crash')");
  try {
    await expect(gateway.completeConnection(redirect, call())).rejects.toMatchObject({ code: "INTERNAL" });
  } finally {
    await owner.query("alter table accounts drop constraint broken");
  }
  const exchanges = JSON.stringify(sandbox.stats.tokenRequests);
  const { connection } = await gateway.completeConnection(redirect, call());
  expect(connection?.state).toBe(ConnectionState.SUCCEEDED);
  expect(JSON.stringify(sandbox.stats.tokenRequests)).toBe(exchanges);
});

test("ends a denied connection as failed, and the same token connects at the second try", async () => {
  const token = await newConnectToken(account, acme.token, { externalUserId: "Dan" });
  const denied = await gateway.completeConnection(await consent(token, "Dan", { decision: "deny" }), call());
  expect(denied.connection).toMatchObject({ state: ConnectionState.FAILED, accountId: "" });
  expect(denied.connection?.error).not.toBe("");
  const again = await gateway.completeConnection(await consent(token, "Dan"), call());
  expect(again.connection?.state).toBe(ConnectionState.SUCCEEDED);
});

test("reconnects in place, and not an account that was revoked meanwhile", async () => {
  const accountId = (await connect("Eve")).connection?.accountId ?? "";
  const token = () => newConnectToken(account, acme.token, { externalUserId: "Eve" });
  const again = await gateway.completeConnection(await consent(await token(), "Eve", { accountId }), call());
  expect(again.connection).toMatchObject({ state: ConnectionState.SUCCEEDED, accountId });
  const late = await consent(await token(), "Eve", { accountId });
  await api.deleteAccount({ environment: development, accountId }, call(acme.token));
  const end = await gateway.completeConnection(late, call());
  expect(end.connection).toMatchObject({ state: ConnectionState.FAILED, accountId: "" });
});

test("revokes a user's accounts: credentials gone from the vault, the provider told", async () => {
  const accountId = (await connect("Rob")).connection?.accountId ?? "";
  const key = await newKeyAccount(account, acme.token, "Rob");
  const target = { $case: "externalUserId", value: "Rob" } as const;
  const receipts = await collect(api.revokeAllAccounts({ environment: development, target }, call(acme.token)));
  const outcome = Object.fromEntries(receipts.map(({ receipt }) => [receipt?.accountId, receipt]));
  expect(Object.keys(outcome).sort()).toEqual([accountId, key.id].sort());
  expect(outcome[key.id]).toMatchObject({
    externalUserId: "Rob",
    appSlug: "sandbox_header_key",
    providerRevocation: ProviderRevocation.NOT_APPLICABLE,
  });
  expect(outcome[accountId]).toMatchObject({ externalUserId: "Rob", appSlug: "sandbox" });
  expect(outcome[accountId]?.destroyTime).toBeInstanceOf(Date);
  const verify = receiptVerifier([await readPublicKey("the key", readSecret(state.vaultSigningKeyFile))]);
  for (const { receipt } of receipts) {
    const { accountId: account_id, externalUserId: external_user_id, jws = "" } = receipt ?? {};
    expect(await verify(jws)).toMatchObject({ receipt: { account_id, external_user_id } });
  }
  const inVault = await openConnection({
    ...vaultDatabase.superuser,
    applicationName: "test",
    statementTimeoutMs: 5_000,
  });
  const rows = await inVault.query<{ blob: unknown; wrapped_data_key: unknown }>(
    "select blob, wrapped_data_key from credentials where account_id = any($1)",
    [[accountId, key.id]],
  );
  await inVault.end();
  expect(rows).toEqual([
    { blob: null, wrapped_data_key: null },
    { blob: null, wrapped_data_key: null },
  ]);
  for (const giveUpMs = Date.now() + 15_000; sandbox.stats.revocationRequests === 0; await sleep(100)) {
    if (Date.now() > giveUpMs) throw new Error("the provider was never told");
  }
});
