// When a grant ends for good: the first of the ends that come by themselves, kept to the millisecond over refreshes, and told to
// the account service.
import { beforeAll, expect, test } from "vitest";
import { addApp, granted } from "./stand-in-app.ts";
import { soon, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const daySeconds = 86_400;
const idle = await addApp(vault, "idle_app", { lifecycle: { refresh_idle_seconds: 30 * daySeconds } });
const ending = await addApp(vault, "ending_app", {
  lifecycle: { refresh_idle_seconds: 30 * daySeconds, refresh_absolute_seconds: 31 * daySeconds },
});
const endless = await addApp(vault, "endless_app");
beforeAll(() => {
  for (const { shim } of [idle, ending, endless]) shim.misbehave(() => granted());
});

const refresh = (accountId: string) => vault.asAccount.refreshCredential({ ...whose, accountId }, soon());
const days = (time: Date | null, since: Date) => ((time?.getTime() ?? 0) - since.getTime()) / 1000 / daySeconds;

/** As if the account had been connected, and refreshed last, so many days ago. */
async function age(accountId: string, count: number): Promise<Date> {
  const { grantTime } = await vault.rowOf(accountId);
  const aged = new Date(grantTime.getTime() - count * daySeconds * 1000);
  await vault.db.updateTable("credentials").set({ grantTime: aged }).where("accountId", "=", accountId).execute();
  return aged;
}

test("of one that ends when nobody uses it each refresh puts the end off", async () => {
  const accountId = await idle.importAccount();
  const before = await vault.rowOf(accountId);
  expect(days(before.grantExpireTime, before.grantTime)).toBeCloseTo(30, 5);
  expect(days(before.grantNoticeTime, before.grantTime)).toBeCloseTo(24, 5);
  await refresh(accountId);
  const after = await vault.rowOf(accountId);
  expect(after.generation).toBe(2n);
  expect(after.grantExpireTime?.getTime()).toBeGreaterThan(before.grantExpireTime?.getTime() ?? 0);
  expect(after.grantTime).toEqual(before.grantTime);
});

test("of one that ends whatever happens the end stands", async () => {
  const accountId = await ending.importAccount();
  const grantTime = await age(accountId, 20);
  await refresh(accountId);
  const first = await vault.rowOf(accountId);
  expect(days(first.grantExpireTime, grantTime)).toBe(31);
  expect(days(first.grantNoticeTime, grantTime)).toBeCloseTo(31 - 6.2, 5);
  await vault.makeDue(accountId);
  await refresh(accountId);
  const second = await vault.rowOf(accountId);
  expect(second.generation).toBe(3n);
  expect(second.grantExpireTime).toEqual(first.grantExpireTime);
});

test("a new grant has an end of its own", async () => {
  const accountId = await ending.importAccount();
  await age(accountId, 20);
  const value = { accessToken: "sandbox-token-a", refreshToken: "sandbox-token-r", expireTime: undefined };
  const material = { $case: "grant", value } as const;
  const request = { ...whose, accountId, appSlug: "ending_app", oauthAppId: "oa_ending_app", material };
  await vault.asAccount.storeCredential(request, soon());
  const { grantTime, grantExpireTime } = await vault.rowOf(accountId);
  expect(Date.now() - grantTime.getTime()).toBeLessThan(60_000);
  expect(days(grantExpireTime, grantTime)).toBeCloseTo(30, 5);
});

test("one without a refresh token ends with its access token, one with neither end has none", async () => {
  const accountId = vault.newAccountId();
  const expireTime = new Date(Date.now() + 60 * daySeconds * 1000);
  const material = { $case: "grant", value: { accessToken: "sandbox-token-a", expireTime } } as const;
  await vault.asAccount.storeCredential(
    { ...whose, accountId, appSlug: "endless_app", oauthAppId: "oa_endless_app", material },
    soon(),
  );
  const row = await vault.rowOf(accountId);
  expect(row.grantExpireTime).toEqual(row.expireTime);
  expect(days(row.grantNoticeTime, row.grantTime)).toBeCloseTo(53, 3);
  const endlessRow = await vault.rowOf(await endless.importAccount());
  expect(endlessRow).toMatchObject({ grantExpireTime: null, grantNoticeTime: null });
});

test("tells the account service", async () => {
  const accountId = await idle.importAccount();
  const { grantExpireTime, grantNoticeTime } = await vault.rowOf(accountId);
  expect(await vault.credential(accountId)).toMatchObject({ grantExpireTime, grantNoticeTime });
});
