// account.expiring, from the true vault's knowledge of an end to the event: once for each end, whoever looks, and never for an
// account that has ended in another way.
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeEach, expect, test } from "vitest";
import { openEgress } from "#libs/egress.ts";
import { eventBodies } from "../../services/account/event-bodies.ts";
import { tellExpiring } from "../../services/account/expiring-accounts.ts";
import { startHealthWatch } from "../../services/account/health-client.ts";
import { startJobs, sweepTask } from "../../services/account/jobs.ts";
import { catalogsOver } from "../../services/account/own-apps.ts";
import { vaultSigner } from "../../services/account/signing-client.ts";
import { until, vaultFixture } from "../vault/vault-fixture.ts";
import { call, development, newConnectToken, newProject, startAccount } from "./harness.ts";

const vault = await vaultFixture();
const account = await startAccount(`127.0.0.1:${vault.vault.port}`);
const { api, operator, db, owner, clock, now, log } = account;
const acme = await newProject(account);
const client = { appSlug: "sandbox", clientId: "deputy-test", clientSecret: vault.clientSecret };
await operator.createOauthApp({ projectId: acme.projectId, ...client }, call());
const gatewayUrl = "https://deputy.example:8443";
const watch = startHealthWatch({ db, vault: account.vaultClient, gatewayUrl, log, pollMs: 50 }, now);
afterAll(() => watch.stop());
beforeEach(() => {
  clock.aheadMs = 0;
});

const dayMs = 86_400_000;
const connectPage = "https://deputy.example:8443/_static/connect.html";
/** Two processes look at the same time, and once more: an account that the watch held meanwhile is told by the later look. */
async function look(): Promise<void> {
  for (const restMs of [100, 0]) {
    await Promise.all([1, 2].map(() => tellExpiring(db, new Date(now()), connectPage)));
    await sleep(restMs);
  }
}
const endingIn = (days: number) => new Date(Date.now() + days * dayMs);

/** An account whose access token is all that it has; or that one with another. */
async function connect(expireTime: Date, { accountId = "", token = acme.token } = {}) {
  const credential = { $case: "grant" as const, value: { accessToken: "sandbox-token-only", expireTime, scopes: [] } };
  const request = { environment: development as 1, externalUserId: "ann", appSlug: "sandbox", credential, accountId };
  return api.createAccount(request, call(token));
}
const connected = async (expireTime: Date, more = {}) => (await connect(expireTime, more)).account?.id ?? "";

// By the operator: tokens end when the clock is put forward.
const expiring = async (accountId: string) =>
  (await operator.listEvents({ projectId: acme.projectId, environment: development, accountId }, call())).events.filter(
    ({ type }) => type === "account.expiring",
  );
const rowOf = (accountId: string) =>
  db.selectFrom("accounts").selectAll().where("id", "=", accountId).executeTakeFirstOrThrow();

test("tells once, seven days ahead, with what it takes to connect again", async () => {
  const end = endingIn(60);
  const accountId = await connected(end);
  clock.aheadMs = 52 * dayMs;
  await look();
  expect(await expiring(accountId)).toEqual([]);
  clock.aheadMs = 53.01 * dayMs;
  await look();
  await look();
  const events = await expiring(accountId);
  const { grantExpireTime } = await rowOf(accountId);
  expect(Math.abs((grantExpireTime?.getTime() ?? 0) - end.getTime())).toBeLessThan(1_000);
  expect(events.map(({ data }) => data)).toEqual([
    {
      app: "sandbox",
      expire_time: grantExpireTime?.toISOString(),
      reconnect: { connect_page: connectPage, external_user_id: "ann", account_id: accountId, app: "sandbox" },
    },
  ]);
});

test("tells again of another end, and not again of the same one", async () => {
  const accountId = await connected(endingIn(10));
  clock.aheadMs = 9 * dayMs;
  await look();
  expect(await expiring(accountId)).toHaveLength(1);
  // Something else changes about the credential.
  const failed = { failures: 1, stateReason: "PROVIDER_FAILING", lastRefreshTime: new Date() };
  await vault.db.updateTable("credentials").set(failed).where("accountId", "=", accountId).execute();
  await until(async () => (await rowOf(accountId)).lastRefreshTime !== null);
  await look();
  expect(await expiring(accountId)).toHaveLength(1);
  clock.aheadMs = 0;
  await connected(endingIn(20), { accountId });
  await look();
  expect(await expiring(accountId)).toHaveLength(1);
  clock.aheadMs = 17 * dayMs;
  await look();
  expect(await expiring(accountId)).toHaveLength(2);
});

test("learns of an end that the vault puts off, and does not tell of the earlier one", async () => {
  const accountId = await connected(endingIn(10));
  // First what is known from the beginning, so that the next is told for itself.
  const refreshed = { lastRefreshTime: new Date() };
  await vault.db.updateTable("credentials").set(refreshed).where("accountId", "=", accountId).execute();
  await until(async () => (await rowOf(accountId)).lastRefreshTime !== null);
  const later = { grantExpireTime: endingIn(40), grantNoticeTime: endingIn(33) };
  await vault.db.updateTable("credentials").set(later).where("accountId", "=", accountId).execute();
  await until(async () => (await rowOf(accountId)).grantExpireTime?.getTime() === later.grantExpireTime.getTime());
  clock.aheadMs = 32 * dayMs;
  await look();
  expect(await expiring(accountId)).toEqual([]);
  clock.aheadMs = 34 * dayMs;
  await look();
  expect(await expiring(accountId)).toHaveLength(1);
});

test("tells of no account that is dead or revoked", async () => {
  const [dead, revoked] = [await connected(endingIn(10)), await connected(endingIn(10))];
  // Of a generation that the vault does not know: it must not be told that the credential is well after all.
  const ended = { health: "DEAD", credentialGeneration: 2 } as const;
  await db.updateTable("accounts").set(ended).where("id", "=", dead).execute();
  await api.deleteAccount({ environment: development, accountId: revoked }, call(acme.token));
  clock.aheadMs = 9 * dayMs;
  await look();
  expect([await expiring(dead), await expiring(revoked)]).toEqual([[], []]);
});

test("knows the end of an account that was verified after it was connected", async () => {
  const asked = { externalUserId: "ann", requireVerification: true, successRedirectUri: "https://acme.example/done" };
  const token = await newConnectToken(account, acme.token, asked);
  const { connectionId, verifier } = await connect(endingIn(10), { token });
  const request = { environment: development as 1, externalUserId: "ann", connectionId, verifier };
  const { connection } = await api.verifyConnection(request, call(acme.token));
  clock.aheadMs = 9 * dayMs;
  await look();
  expect(await expiring(connection?.accountId ?? "")).toHaveLength(1);
});

test("a change of the end is none for who uses the account", async () => {
  const accountId = await connected(endingIn(10));
  clock.aheadMs = 9 * dayMs;
  await look();
  const changes = await owner.query<{ changes_use: boolean }>(
    "select changes_use from account_changes where account_id = $1 order by number",
    [accountId],
  );
  expect(changes.map((change) => change.changes_use)).toEqual([true, false]);
});

test("the sweep of a running service does it, in batches", async () => {
  const accountId = await connected(endingIn(10));
  await db.updateTable("accounts").set({ grantNoticeTime: null }).execute();
  await owner.query(
    `insert into accounts (project_id, id, environment, external_user_id, app_slug, oauth_app_id, name, state, health, error,
       authorized_scopes, create_time, update_time, grant_expire_time, grant_notice_time)
     select project_id, 'apn_many' || n, environment, external_user_id, app_slug, oauth_app_id, '', 'ACTIVE', 'HEALTHY', '', '{}',
       now(), now(), now() + interval '1 day', now() - interval '1 hour'
     from accounts, generate_series(1, 1200) as n where id = $1`,
    [accountId],
  );
  const egress = openEgress({ exemptTargets: [] });
  const jobs = await startJobs(
    {
      ...{ db, log, gatewayUrl, historyMs: 30 * dayMs },
      sign: vaultSigner(db, account.vaultClient),
      bodies: eventBodies(catalogsOver(db, account.catalog)),
      outgoing: { egress, exemptTargets: [] },
    },
    { ...account.access, applicationName: "jobs", statementTimeoutMs: 10_000 },
    now,
  );
  await owner.query("select graphile_worker.add_job($1)", [sweepTask]);
  const count = async () =>
    (
      await owner.query<{ count: number }>(
        "select count(*)::int from events where type = 'account.expiring' and account_id like 'apn_many%'",
      )
    )[0]?.count;
  await until(async () => (await count()) === 1200);
  await jobs.stop();
  await egress.close();
});
