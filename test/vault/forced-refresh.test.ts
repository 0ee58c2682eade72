// The refresh that a proxy asks for when an upstream refuses a token: with its caller's token, once for each version of the
// credential, and not more than once a minute for an account.
import { expect, test } from "vitest";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { soon, tokenWith, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const second = await vault.startVault({ worker: false });
const { asProxy, asAccount, connectAccount, shim } = vault;
const proxies = [asProxy, await second.as("proxy")];

function force(accountId: string, generation: bigint, client = asProxy, token = vault.token) {
  return client.refreshCredential({ ...whose, accountId, generation }, soon(token));
}

/** As if the last refresh had been so long ago. */
async function age(accountId: string, seconds: number): Promise<void> {
  const lastRefreshTime = new Date(Date.now() - seconds * 1000);
  await vault.db.updateTable("credentials").set({ lastRefreshTime }).where("accountId", "=", accountId).execute();
}

test("is sent once for a hundred callers of two vaults who hold one version, and all are told of the next", async () => {
  const accountId = await connectAccount();
  const sent = vault.tokenRequests();
  const answers = await Promise.all(
    Array.from({ length: 100 }, (_, index) => force(accountId, 1n, proxies[index % 2] ?? asProxy)),
  );
  expect(vault.tokenRequests() - sent).toBe(1);
  expect(answers.every(({ credential }) => credential?.generation === 2n)).toBe(true);
  expect(answers.some(({ refreshed }) => refreshed)).toBe(true);
  // Who comes late with the old version finds the new one.
  expect(await force(accountId, 1n)).toMatchObject({ refreshed: false, credential: { generation: 2n } });
  expect(vault.tokenRequests() - sent).toBe(1);
});

test("is sent once a minute, whichever vault is asked, and at any time for the account service", async () => {
  const accountId = await connectAccount();
  await force(accountId, 1n);
  const sent = vault.tokenRequests();
  for (const proxy of proxies) {
    expect(await force(accountId, 2n, proxy)).toMatchObject({ refreshed: false, credential: { generation: 2n } });
  }
  expect(vault.tokenRequests()).toBe(sent);
  await age(accountId, 61);
  expect(await force(accountId, 2n)).toMatchObject({ refreshed: true, credential: { generation: 3n } });
  const { refreshed } = await asAccount.refreshCredential({ ...whose, accountId, generation: 3n }, soon());
  expect([refreshed, vault.tokenRequests() - sent]).toEqual([true, 2]);
});

test("is not sent while refreshes fail", async () => {
  const accountId = await connectAccount();
  shim.misbehave((path) => (path === "/token" ? { status: 503, body: "{}" } : undefined));
  expect(await force(accountId, 1n)).toMatchObject({ refreshed: false, credential: { generation: 1n } });
  await vault.db.updateTable("credentials").set({ retryTime: null }).where("accountId", "=", accountId).execute();
  const sent = vault.tokenRequests();
  expect(await force(accountId, 1n)).toMatchObject({ refreshed: false });
  expect(vault.tokenRequests()).toBe(sent);
  shim.misbehave(() => undefined);
});

test("that the provider refuses for good leaves the account in need of its user", async () => {
  const accountId = await connectAccount();
  shim.misbehave(() => ({ status: 400, body: '{"error":"invalid_grant"}' }));
  await expect(force(accountId, 1n)).rejects.toMatchObject({ code: "FAILED_PRECONDITION", reason: "NEEDS_REAUTH" });
  shim.misbehave(() => undefined);
  expect(await vault.credential(accountId)).toMatchObject({ state: CredentialState.NEEDS_REAUTH });
});

test("needs the caller's token with connect:proxy, for an account of that caller", async () => {
  const accountId = await connectAccount();
  const sent = vault.tokenRequests();
  await expect(asProxy.refreshCredential({ ...whose, accountId }, soon())).rejects.toMatchObject({
    code: "UNAUTHENTICATED",
  });
  const narrow = await tokenWith({ scope: "connect:accounts:read" });
  await expect(force(accountId, 1n, asProxy, narrow)).rejects.toMatchObject({ reason: "SCOPE_MISSING" });
  const foreign = await tokenWith({ project_id: "proj_2" });
  await expect(force(accountId, 1n, asProxy, foreign)).rejects.toMatchObject({ code: "NOT_FOUND" });
  const otherUser = await tokenWith({ environment: whose.environment, external_user_id: "user-2" });
  await expect(force(accountId, 1n, asProxy, otherUser)).rejects.toMatchObject({ code: "NOT_FOUND" });
  const unnamed = { projectId: whose.projectId, environment: whose.environment, accountId };
  await expect(asProxy.refreshCredential(unnamed, soon(otherUser))).rejects.toMatchObject({ code: "NOT_FOUND" });
  for (const service of ["operator", "gateway"] as const) {
    const client = await vault.vault.as(service);
    await expect(force(accountId, 1n, client), service).rejects.toMatchObject({ code: "PERMISSION_DENIED" });
  }
  expect(vault.tokenRequests()).toBe(sent);
});
