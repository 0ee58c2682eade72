// Health on its way from the true vault to accounts: what is shown, and that each change is told once, however many processes
// read it and whatever the order in which things become known.
import { afterAll, beforeEach, expect, test } from "vitest";
import type { StatusError } from "#libs/errors.ts";
import { AccountHealth } from "#proto/deputy/account/v1/accounts.ts";
import { type CredentialReport, healthOf, readWatchPlace, takeOverReports } from "../../services/account/health.ts";
import { startHealthWatch } from "../../services/account/health-client.ts";
import { until, vaultFixture } from "../vault/vault-fixture.ts";
import { call, development, newProject, startAccount } from "./harness.ts";

const vault = await vaultFixture();
const account = await startAccount(`127.0.0.1:${vault.vault.port}`);
const { api, operator, db, now, log } = account;
const acme = await newProject(account);
const client = { appSlug: "sandbox", clientId: "deputy-test", clientSecret: vault.clientSecret };
await operator.createOauthApp({ projectId: acme.projectId, ...client }, call());

const watch = { db, vault: account.vaultClient, gatewayUrl: "https://deputy.example:8443", log, pollMs: 50 };
// Two, as of two processes.
const watches = [startHealthWatch(watch, now), startHealthWatch(watch, now)];
afterAll(async () => {
  for (const one of watches) await one.stop();
});

const granted = {
  status: 200,
  body: '{"access_token":"sandbox-token-new","token_type":"Bearer","expires_in":3600,"refresh_token":"sandbox-token-next"}',
};
const failing = { status: 503, body: "" };
const refused = { status: 400, body: '{"error":"invalid_grant"}' };
const answer = (given: typeof granted) => vault.shim.misbehave((path) => (path === "/token" ? given : undefined));
beforeEach(() => answer(granted));

const scope = { projectId: acme.projectId, environment: development as 1 };
const grant = () => ({
  $case: "grant" as const,
  value: {
    accessToken: "sandbox-token-first",
    refreshToken: "sandbox-token-refresh",
    expireTime: new Date(Date.now() + 3_600_000),
    scopes: ["read"],
  },
});

/** An account with a grant; or that one with another. */
async function connect(accountId = ""): Promise<string> {
  const request = { environment: development as 1, externalUserId: "ann", appSlug: "sandbox", credential: grant() };
  return (await api.createAccount({ ...request, accountId }, call(acme.token))).account?.id ?? "";
}

async function refresh(accountId: string): Promise<void> {
  await vault.makeDue(accountId);
  await vault.asAccount.refreshCredential({ ...scope, accountId }, call()).catch((error: StatusError) => {
    expect(error.reason).toBe("NEEDS_REAUTH");
  });
}

const get = async (accountId: string) =>
  (await api.getAccount({ environment: development, externalUserId: "ann", accountId }, call(acme.token))).account;
const eventsOf = async (accountId: string) =>
  (await api.listEvents({ environment: development, accountId }, call(acme.token))).events.toReversed();
const typesOf = async (accountId: string) =>
  (await eventsOf(accountId)).map(({ type }) => type).filter((type) => !/connected$/.test(type));
const hasHealth = (accountId: string, health: AccountHealth) =>
  until(async () => (await get(accountId))?.health === health);

test("shows when the token ends and is refreshed, from the beginning and after a refresh", async () => {
  const accountId = await connect();
  const before = await get(accountId);
  expect(before).toMatchObject({ health: AccountHealth.HEALTHY, error: "", lastRefreshTime: undefined });
  expect(before?.expireTime?.getTime()).toBeGreaterThan(Date.now() + 3_500_000);
  expect(before?.nextRefreshTime).toBeInstanceOf(Date);
  await refresh(accountId);
  await until(async () => (await get(accountId))?.lastRefreshTime !== undefined);
  const after = await get(accountId);
  expect(after?.updateTime).toEqual(before?.updateTime);
  expect(await typesOf(accountId)).toEqual([]);
});

test("does not tell of one failure, but of three in a row, and of the recovery", async () => {
  const accountId = await connect();
  answer(failing);
  await refresh(accountId);
  await until(async () => {
    const row = await db.selectFrom("accounts").selectAll().where("id", "=", accountId).executeTakeFirstOrThrow();
    return row.nextRefreshTime?.getTime() === (await vault.rowOf(accountId)).nextRefreshTime?.getTime();
  });
  expect(await get(accountId)).toMatchObject({ health: AccountHealth.HEALTHY, error: "" });
  await refresh(accountId);
  await refresh(accountId);
  await hasHealth(accountId, AccountHealth.UNHEALTHY);
  expect((await get(accountId))?.error).toContain("it is tried again");
  answer(granted);
  await refresh(accountId);
  await hasHealth(accountId, AccountHealth.HEALTHY);
  expect(await typesOf(accountId)).toEqual(["account.unhealthy", "account.recovered"]);
  const [unhealthy] = await eventsOf(accountId).then((events) =>
    events.filter(({ type }) => type === "account.unhealthy"),
  );
  expect(unhealthy?.data).toMatchObject({ app: "sandbox", reason: "PROVIDER_FAILING" });
});

test("tells once that an account is dead, with what it takes to connect it again", async () => {
  const accountId = await connect();
  answer(refused);
  await refresh(accountId);
  await hasHealth(accountId, AccountHealth.DEAD);
  expect((await get(accountId))?.error).toContain("connect again");
  const dead = (await eventsOf(accountId)).filter(({ type }) => type === "account.dead");
  expect(dead.map(({ data }) => data)).toEqual([
    {
      app: "sandbox",
      reason: "INVALID_GRANT",
      error: "The provider has ended the grant: the user has to connect again.",
      reconnect: {
        connect_page: "https://deputy.example:8443/_static/connect.html",
        external_user_id: "ann",
        account_id: accountId,
        app: "sandbox",
      },
    },
  ]);
  await connect(accountId);
  expect(await get(accountId)).toMatchObject({ health: AccountHealth.HEALTHY, error: "" });
  answer(granted);
  await refresh(accountId);
  await until(async () => (await get(accountId))?.lastRefreshTime !== undefined);
  expect(await typesOf(accountId)).toEqual(["account.dead"]);
});

/** What the vault would say, taken over by hand. */
async function tell(report: Partial<CredentialReport> & { readonly accountId: string }, from?: string) {
  const place = from ?? (await readWatchPlace(db));
  const row = await db.selectFrom("accounts").selectAll().where("id", "=", report.accountId).executeTakeFirstOrThrow();
  const { projectId, expireTime, lastRefreshTime, nextRefreshTime, grantExpireTime, credentialGeneration } = row;
  const usual = { state: "ACTIVE", reason: "", failures: 0, generation: credentialGeneration ?? 0 } as const;
  const times = { expireTime, lastRefreshTime, nextRefreshTime, grantExpireTime, grantNoticeTime: null };
  const reports = [{ ...usual, projectId, ...times, ...report }];
  const to = await readWatchPlace(db);
  const batch = { from: place, to, reports };
  return takeOverReports(db, batch, { time: new Date(now()), connectPage: "https://deputy.example/" });
}

test("does not take over what is older than the present grant", async () => {
  const accountId = await connect();
  await connect(accountId);
  const { credentialGeneration } = await db
    .selectFrom("accounts")
    .select("credentialGeneration")
    .where("id", "=", accountId)
    .executeTakeFirstOrThrow();
  expect(credentialGeneration).toBe(2);
  await until(
    async () => (await tell({ accountId, state: "NEEDS_REAUTH", reason: "INVALID_GRANT", generation: 1 })) === "taken",
  );
  expect((await get(accountId))?.health).toBe(AccountHealth.HEALTHY);
  expect(await typesOf(accountId)).toEqual([]);
});

test("throws away what another process has taken over", async () => {
  const accountId = await connect();
  const dead = { accountId, state: "NEEDS_REAUTH", reason: "INVALID_GRANT" } as const;
  expect(await tell(dead, "a place that is past")).toBe("stale");
  expect((await get(accountId))?.health).toBe(AccountHealth.HEALTHY);
});

test("waits for nobody who holds an account, and comes back", async () => {
  const accountId = await connect();
  await db.transaction().execute(async (transaction) => {
    await transaction.selectFrom("accounts").select("id").where("id", "=", accountId).forUpdate().execute();
    await until(async () => (await tell({ accountId, state: "NEEDS_REAUTH", reason: "INVALID_GRANT" })) === "busy");
  });
  expect((await get(accountId))?.health).toBe(AccountHealth.HEALTHY);
});

test("leaves a revoked account as it is", async () => {
  const accountId = await connect();
  await api.deleteAccount({ environment: development, accountId }, call(acme.token));
  await until(async () => (await tell({ accountId, state: "NEEDS_REAUTH", reason: "INVALID_GRANT" })) === "taken");
  const row = await db.selectFrom("accounts").selectAll().where("id", "=", accountId).executeTakeFirstOrThrow();
  expect(row).toMatchObject({ state: "REVOKED", health: "HEALTHY" });
});

test("judges the health of a credential", () => {
  const time = new Date(1_000_000);
  const ends = (ms: number) => new Date(time.getTime() + ms);
  const report = { state: "ACTIVE", reason: "PROVIDER_FAILING", failures: 1, expireTime: ends(1000) } as const;
  const judge = (before: "HEALTHY" | "UNHEALTHY" | "DEAD", more: object) =>
    healthOf(before, { ...report, ...more } as unknown as CredentialReport, time);
  for (const [before, more, after] of [
    ["HEALTHY", { reason: "", failures: 0 }, "HEALTHY"],
    ["DEAD", { reason: "", failures: 0 }, "HEALTHY"],
    ["HEALTHY", {}, "HEALTHY"],
    ["UNHEALTHY", {}, "UNHEALTHY"],
    ["DEAD", {}, "UNHEALTHY"],
    ["HEALTHY", { failures: 3 }, "UNHEALTHY"],
    ["HEALTHY", { expireTime: ends(0) }, "UNHEALTHY"],
    ["HEALTHY", { expireTime: null }, "HEALTHY"],
    ["HEALTHY", { reason: "QUARANTINED", failures: 0 }, "UNHEALTHY"],
    ["HEALTHY", { state: "UNKNOWN", reason: "ANSWER_LOST" }, "HEALTHY"],
    ["HEALTHY", { state: "NEEDS_REAUTH", failures: 0 }, "DEAD"],
  ] as const) {
    expect(judge(before, more), JSON.stringify([before, more])).toBe(after);
  }
});
