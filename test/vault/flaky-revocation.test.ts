// Revoking at a provider that has a bad day: all accounts are unusable at once, each has a receipt, and none of the revocations
// is lost. The bench (`npm run bench:revoke`) does the same with 10,000 accounts.
import { sql } from "kysely";
import { expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { ProviderRevocation } from "#proto/deputy/account/v1/accounts.ts";
import { addApp } from "./stand-in-app.ts";
import { until, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const admin = { ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 10_000 };

test("ends all of 200 revocations well though the provider fails three times in ten", async () => {
  const app = await addApp(vault, "flaky");
  const accountIds = await app.importAccounts(200, { isDue: false });
  let calls = 0;
  vault.shim.misbehave((path) => {
    if (path !== "/token/revocation") return undefined;
    const place = (calls++ * 37) % 100;
    if (place < 12) return { status: 500, body: "no JSON" };
    if (place < 20) return { status: 429, body: "{}", headers: { "retry-after": "1" } };
    if (place < 30) return "break";
    return { status: 200, body: "" };
  });
  const receipts = await vault.destroy(...accountIds);
  expect(receipts).toHaveLength(200);
  expect(receipts.every(({ jws }) => jws !== "")).toBe(true);
  await Promise.all(
    accountIds.map((accountId) =>
      expect(vault.lease(accountId)).rejects.toMatchObject({ code: "FAILED_PRECONDITION", reason: "ACCOUNT_REVOKED" }),
    ),
  );
  const outcomes = async () => {
    const rows = await vault.db
      .selectFrom("revocations")
      .select(["state", sql<number>`count(*)::int`.as("count")])
      .groupBy("state")
      .execute();
    return Object.fromEntries(rows.map(({ state, count }) => [state, count]));
  };
  const connection = await openConnection(admin);
  await until(async () => {
    const { PENDING = 0, DONE = 0, ...others } = await outcomes();
    expect({ sum: PENDING + DONE, others }).toEqual({ sum: 200, others: {} });
    // The pauses are skipped, not shortened: what waits for its next attempt gets it.
    await connection.query("update graphile_worker._private_jobs set run_at = now() where run_at > now()");
    return DONE === 200;
  }, 60_000);
  await connection.end();
  expect(calls).toBeGreaterThan(400);
  const states = (await vault.destroy(...accountIds)).map(({ providerRevocation }) => providerRevocation);
  expect(new Set(states)).toEqual(new Set([ProviderRevocation.DONE]));
}, 90_000);

test("waits for as long as the provider asks for, and then for the queue's own pause", async () => {
  const accountId = await vault.connectAccount();
  vault.shim.misbehave((path) =>
    path === "/token/revocation" ? { status: 429, body: "{}", headers: { "retry-after": "600" } } : undefined,
  );
  await vault.destroy(accountId);
  const connection = await openConnection(admin);
  const waits = () =>
    connection.query<{ seconds: number }>(
      "select extract(epoch from run_at - now())::float8 as seconds from graphile_worker._private_jobs where last_error like '%HTTP_429%'",
    );
  await until(async () => (await waits()).length === 1);
  const [wait] = await waits();
  expect(wait?.seconds).toBeGreaterThan(590);
  expect(wait?.seconds).toBeLessThan(630);
  await connection.end();
});
