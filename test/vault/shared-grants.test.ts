// Revoking at a provider whose revocation ends all of its user's grants to the client: no account's grant is killed with
// another's, the last one tells the provider, and receipts claim no more than is known.
import { beforeAll, expect, test } from "vitest";
import { ProviderRevocation } from "#proto/deputy/account/v1/accounts.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { settleDeferredRevocations } from "../../services/vault/shared-grants.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const second = await vault.startVault({ worker: false });
const { asAccount, destroy, shim } = vault;
const { DEFERRED, DONE, FAILED, PENDING } = ProviderRevocation;

beforeAll(() => {
  const app = vault.catalog.get("sandbox");
  if (app) vault.catalog.set("sandbox", { ...app, lifecycle: { ...app.lifecycle, revoke_effect: "user_client" } });
});

/** Connects an account of a person at the provider. */
async function connectAs(name: string): Promise<string> {
  const accountId = vault.newAccountId();
  await asAccount.completeAuthorization((await vault.consent(accountId, "allow", name)).redirect, soon());
  return accountId;
}

/** An imported grant: nobody has asked the provider whose it is. */
async function importFor(externalUserId: string, environment: Environment = whose.environment): Promise<string> {
  const accountId = vault.newAccountId();
  const value = { accessToken: `access-${accountId}`, refreshToken: `refresh-${accountId}` };
  const subject = {
    ...whose,
    environment,
    externalUserId,
    accountId,
    appSlug: "sandbox",
    oauthAppId: vault.oauthAppId,
  };
  await asAccount.storeCredential({ ...subject, material: { $case: "grant", value } }, soon());
  return accountId;
}

const rowOf = (accountId: string) =>
  vault.db.selectFrom("revocations").selectAll().where("accountId", "=", accountId).executeTakeFirstOrThrow();
const stateOf = async (accountId: string) => (await destroy(accountId))[0]?.providerRevocation;
const calls = () => shim.requests.filter((path) => path === "/token/revocation").length;

test("defers the first of two, keeping nothing, and both are done when the last one has told the provider", async () => {
  const [first, last] = [await connectAs("Ada"), await connectAs("Ada")];
  const before = calls();
  expect(await destroy(first)).toMatchObject([{ providerRevocation: DEFERRED }]);
  expect(await rowOf(first)).toMatchObject({ state: "DEFERRED", blob: null, wrappedDataKey: null });
  expect((await vault.lease(last)).lease?.generation).toBe(1n);
  expect(calls()).toBe(before);
  await destroy(last);
  await until(async () => (await stateOf(last)) === DONE);
  expect(calls()).toBe(before + 2);
  expect(await stateOf(first)).toBe(DONE);
  const entries = await vault.db
    .selectFrom("auditEntries")
    .selectAll()
    .where("accountId", "=", first)
    .orderBy("id")
    .execute();
  expect(entries.map(({ action }) => action).slice(-3)).toEqual([
    "credential.destroyed",
    "credential.revocation_deferred",
    "credential.revocation_done",
  ]);
});

test("tells the provider at once when the user's other accounts are of another person there", async () => {
  const [one, other] = [await connectAs("Bea"), await connectAs("Ben")];
  await destroy(one);
  await until(async () => (await stateOf(one)) === DONE);
  expect((await vault.lease(other)).lease?.generation).toBe(1n);
});

test("counts an account whose person is not known, and does not take its call for proof", async () => {
  const [first, last] = [await importFor("user-2"), await importFor("user-2", Environment.PRODUCTION)];
  expect(await destroy(first)).toMatchObject([{ providerRevocation: DEFERRED }]);
  const production = { projectId: whose.projectId, environment: Environment.PRODUCTION, accountIds: [last] };
  await asAccount.destroyCredentials(production, soon());
  await until(async () => (await rowOf(last)).state === "DONE");
  expect(await stateOf(first)).toBe(FAILED);
  expect(await rowOf(first)).toMatchObject({ lastError: "SHARED_GRANT_NOT_TOLD" });
});

test("does not count another user's account whose person is not known", async () => {
  const [one, other] = [await importFor("user-3"), await importFor("user-4")];
  await destroy(one);
  await until(async () => (await stateOf(one)) === DONE);
  expect(await vault.rowOf(other)).toMatchObject({ state: "ACTIVE" });
});

test("tells the provider at once when asked for, and what was deferred before is done with it", async () => {
  const [deferred, asked, sibling] = [await connectAs("Cleo"), await connectAs("Cleo"), await connectAs("Cleo")];
  expect(await destroy(deferred)).toMatchObject([{ providerRevocation: DEFERRED }]);
  const { projectId, environment } = whose;
  const request = { projectId, environment, accountIds: [asked], revokeSharedGrant: true };
  const { receipts } = await asAccount.destroyCredentials(request, soon());
  expect([PENDING, DONE]).toContain(receipts[0]?.providerRevocation);
  await until(async () => (await stateOf(asked)) === DONE);
  expect(await stateOf(deferred)).toBe(DONE);
  expect(await vault.rowOf(sibling)).toMatchObject({ state: "ACTIVE" });
});

test("defers what is on its way when the user connects again before the provider was reached", async () => {
  const first = await connectAs("Dora");
  shim.misbehave((path) => (path === "/token/revocation" ? { status: 503, body: "{}" } : undefined));
  await destroy(first);
  await until(async () => (await rowOf(first)).lastError === "HTTP_503");
  const again = await connectAs("Dora");
  const before = calls();
  await until(async () => (await rowOf(first)).state === "DEFERRED", 15_000);
  shim.misbehave(() => undefined);
  expect(calls()).toBe(before);
  await destroy(again);
  await until(async () => (await stateOf(again)) === DONE);
  expect(await stateOf(first)).toBe(DONE);
});

test("gives up what waits for a shadow, when that goes without telling anybody", async () => {
  const [first, shadow] = [await importFor("user-5"), await importFor("user-5")];
  const alone = { shadow: true, nextRefreshTime: null };
  await vault.db.updateTable("credentials").set(alone).where("accountId", "=", shadow).execute();
  expect(await destroy(first)).toMatchObject([{ providerRevocation: DEFERRED }]);
  await settleDeferredRevocations(vault.db);
  expect(await stateOf(first)).toBe(DEFERRED);
  await destroy(shadow);
  await settleDeferredRevocations(vault.db);
  expect(await stateOf(first)).toBe(FAILED);
});

test("of accounts that are destroyed together or at two vaults at once, the provider is always told of the last", async () => {
  const asSecond = await second.as("account");
  const { projectId, environment } = whose;
  const people = await Promise.all(
    Array.from({ length: 20 }, async (_, index) => [await connectAs(`Eve ${index}`), await connectAs(`Eve ${index}`)]),
  );
  const outcomes = await Promise.all(
    people.map(async ([one = "", two = ""], index) => {
      if (index === 0) return destroy(one, two);
      const other = asSecond.destroyCredentials({ projectId, environment, accountIds: [two] }, soon());
      return [...(await destroy(one)), ...(await other).receipts];
    }),
  );
  for (const receipts of outcomes) {
    expect(receipts).toHaveLength(2);
    expect(receipts.every(({ providerRevocation }) => providerRevocation === DEFERRED)).toBe(false);
  }
  const states = async () => (await destroy(...people.flat())).map(({ providerRevocation }) => providerRevocation);
  await until(async () => (await states()).every((state) => state === DONE), 20_000);
});
