// What proxies hear of a refresh while they hold leases: over two vaults on one database, with proxies played by hand.
import { afterEach, beforeEach, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { LeaseInvalidationReason } from "#proto/deputy/vault/v1/leases.ts";
import { leaseGrants } from "../../services/vault/lease-grants.ts";
import { leaseMs } from "../../services/vault/lease-watchers.ts";
import { refreshNotices } from "../../services/vault/refresh-notices.ts";
import { addApp } from "./stand-in-app.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";
import { type WatchingProxy, watchLeasesAs } from "./watching-proxy.ts";

const vault = await vaultFixture();
const second = await vault.startVault({ worker: false });
const secondProxy = await second.as("proxy");
const dying = await addApp(vault, "dying", { lifecycle: { access_dies_on_refresh: true } });
const { REFRESHED, REVOKED } = LeaseInvalidationReason;

let here: WatchingProxy;
let other: WatchingProxy;
beforeEach(async () => {
  here = await watchLeasesAs(vault.asProxy, "prx_here");
  other = await watchLeasesAs(vault.asProxy, "prx_other");
});
afterEach(async () => {
  for (const watching of [here, other]) {
    watching.goodbye();
    await watching.ended;
  }
});

const leaseTo = (proxyId: string, accountId: string, client = vault.asProxy) =>
  client.leaseInjection({ ...whose, accountId, proxyId }, soon(vault.token));

/** Refreshes at the second vault, and waits until what the streams of the first say of it has been said. */
async function refresh(accountId: string): Promise<void> {
  const marker = await vault.connectAccount();
  await leaseTo("prx_here", marker);
  expect(await second.refresher.refresh(await vault.rowOf(accountId))).toEqual({ kind: "refreshed" });
  expect(await second.refresher.refresh(await vault.rowOf(marker))).toEqual({ kind: "refreshed" });
  await until(() => here.invalidations.some((told) => told.accountId === marker));
  await new Promise((resolve) => setTimeout(resolve, 100));
}

const toldOf = (watching: WatchingProxy, accountId: string) =>
  watching.invalidations.filter((told) => told.accountId === accountId);

test("a proxy that holds a lease is told of the refresh at another vault, with a new lease that works", async () => {
  const accountId = await vault.connectAccount();
  const { lease: old } = await leaseTo("prx_here", accountId);
  await refresh(accountId);
  const [told, ...more] = toldOf(here, accountId);
  expect(more).toEqual([]);
  expect(told).toMatchObject({
    projectId: "proj_1",
    reason: REFRESHED,
    lease: { ...old, generation: 2n, headers: [{}], refreshed: true, leaseExpireTime: expect.any(Date) },
  });
  expect(told?.lease?.headers).not.toEqual(old?.headers);
  expect(told?.lease?.leaseDurationMs).toBeLessThanOrEqual(leaseMs);
  expect(await vault.callApi(told?.lease)).toBe(200);
});

test("a proxy that holds none of the account is told nothing", async () => {
  const accountId = await vault.connectAccount();
  await leaseTo("prx_here", accountId);
  await leaseTo("prx_other", await vault.connectAccount());
  await refresh(accountId);
  expect(toldOf(here, accountId)).toHaveLength(1);
  expect(other.invalidations).toEqual([]);
});

test("a lease that another vault gave is used to its end, unless the old access token dies: then it is told without one", async () => {
  const [living, dead] = [await vault.connectAccount(), await dying.importAccount({ isDue: false })];
  for (const accountId of [living, dead]) await leaseTo("prx_here", accountId, secondProxy);
  await refresh(living);
  await refresh(dead);
  expect(toldOf(here, living)).toEqual([]);
  expect(toldOf(here, dead)).toMatchObject([{ reason: REFRESHED, lease: undefined }]);
});

test("no lease is made of a credential that is destroyed or needs its user, though a notice of its refresh comes late", async () => {
  const [destroyed, refused] = [await vault.connectAccount(), await vault.connectAccount()];
  for (const accountId of [destroyed, refused]) await leaseTo("prx_here", accountId);
  await vault.destroy(destroyed);
  const needsUser = { state: "NEEDS_REAUTH", stateReason: "INVALID_GRANT", nextRefreshTime: null } as const;
  await vault.db.updateTable("credentials").set(needsUser).where("accountId", "=", refused).execute();
  const admin = await openConnection({ ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 5_000 });
  const notices = [destroyed, refused].map((accountId) => ["proj_1", accountId, true]);
  await admin.query("select pg_notify('lease_refreshes', $1)", [JSON.stringify(notices)]);
  await admin.end();
  await until(() => toldOf(here, destroyed).length === 2 && toldOf(here, refused).length === 1);
  expect(toldOf(here, destroyed)).toMatchObject([
    { reason: REVOKED, lease: undefined },
    { reason: REFRESHED, lease: undefined },
  ]);
  expect(toldOf(here, refused)).toMatchObject([{ reason: REFRESHED, lease: undefined }]);
});

test("a notification holds ids and nothing else, and what is malformed in one hurts nobody", async () => {
  const admin = await openConnection({ ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 5_000 });
  const payloads: string[] = [];
  admin.onNotification((_channel, payload) => payloads.push(payload));
  await admin.query("listen lease_refreshes");
  await admin.query("select pg_notify('lease_refreshes', 'no list')");
  const accountId = await vault.connectAccount();
  await leaseTo("prx_here", accountId);
  await second.refresher.refresh(await vault.rowOf(accountId));
  await until(() => toldOf(here, accountId).length === 1);
  expect(payloads).toEqual(["no list", JSON.stringify([["proj_1", accountId, false]])]);
  await admin.end();
});

test("a thousand refreshes at once are told in a few notifications, each short enough for Postgres", async () => {
  const payloads: string[] = [];
  const notices = refreshNotices(async (payload) => payloads.push(payload));
  const heard: string[] = [];
  const stop = notices.listen(({ accountId }) => heard.push(accountId));
  const accountIds = Array.from({ length: 1_000 }, (_, index) => `apn_ü_${index}`);
  for (const accountId of accountIds) notices.tell({ projectId: "proj_1", accountId, accessEnded: false });
  await until(() => payloads.length > 0);
  expect(payloads.length).toBeLessThan(8);
  expect(Math.max(...payloads.map((payload) => Buffer.byteLength(payload)))).toBeLessThan(8_000);
  for (const payload of payloads) notices.hear(payload);
  expect(heard).toEqual(accountIds);
  stop();
  notices.hear(payloads[0] ?? "");
  expect(heard).toHaveLength(1_000);
});

test("a grant is remembered for as long as a lease lasts, for the proxy that it was given to", () => {
  let nowMs = 0;
  const grants = leaseGrants(() => nowMs);
  const account = { projectId: "proj_1", accountId: "apn_1" };
  grants.note("prx_1", account);
  nowMs = 5_000;
  expect(grants.has("prx_1", account)).toBe(true);
  expect(grants.has("prx_2", account)).toBe(false);
  expect(grants.has("prx_1", { ...account, projectId: "proj_2" })).toBe(false);
  grants.note("prx_1", account);
  nowMs = 14_999;
  expect(grants.has("prx_1", account)).toBe(true);
  nowMs = 15_000;
  expect(grants.has("prx_1", account)).toBe(false);
});
