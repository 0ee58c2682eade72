// How a refresh begins on its row: what speaks against it, and what the row says afterwards.
import { type Insertable, sql } from "kysely";
import { afterAll, expect, test } from "vitest";
import { beginRefresh } from "../../services/vault/refresh-records.ts";
import { type CredentialsTable, openVaultDatabase } from "../../services/vault/schema.ts";
import { createTestDatabase } from "../support/postgres.ts";

const database = await createTestDatabase("vault");
const access = { applicationName: "test", statementTimeoutMs: 10_000 };
const db = openVaultDatabase({ ...database.runtime, ...access, maxConnections: 2 });
afterAll(() => db.destroy());

const ours = { id: "int_ours", by: "this process" };
const earlier = (by: string, secondsAgo: number) => ({
  intentId: "int_earlier",
  intentBy: by,
  intentTime: new Date(Date.now() - secondsAgo * 1000),
});
const inSeconds = (seconds: number) => new Date(Date.now() + seconds * 1000);

test.each<[what: string, row: Partial<Insertable<CredentialsTable>>, strict: boolean, kind: string]>([
  ["a row of which nothing speaks against it", {}, true, "intended"],
  ["a pause that has passed", { retryTime: inSeconds(-1) }, true, "intended"],
  ["a pause that has not", { retryTime: inSeconds(60) }, true, "backoff"],
  ["a secret that has changed", { generation: 2n }, true, "current"],
  ["a shadow", { shadow: true }, true, "unusable"],
  ["a row in need of its user", { state: "NEEDS_REAUTH" }, true, "unusable"],
  ["another's request that may be under way", earlier("another", 20), true, "busy"],
  ["the same where a token may be used again", earlier("another", 20), false, "intended"],
  ["another's request that was lost, while the token works", earlier("another", 40), true, "lost"],
  [
    "an own request that was lost, after the token's end",
    { ...earlier(ours.by, 1), expireTime: inSeconds(-1) },
    true,
    "intended",
  ],
])("%s", async (what, row, strict, kind) => {
  const key = { projectId: "proj_1", accountId: `apn_${what.replaceAll(/\W/g, "_")}` };
  await insert(key, row);
  const begun = await beginRefresh(db, key, { generation: 1n, intent: ours, strict });
  expect(begun.kind).toBe(kind);
  const { intentId } = await db
    .selectFrom("credentials")
    .select("intentId")
    .where("accountId", "=", key.accountId)
    .executeTakeFirstOrThrow();
  expect(intentId === ours.id).toBe(kind === "intended");
  // What is known of an earlier request decides what a failure means, so the row is given as it was found.
  if (begun.kind === "intended")
    expect(begun.row).toMatchObject({ intentId: row.intentId ?? null, readTime: expect.any(Date) });
});

test("begins nothing on a row that is not there", async () => {
  const key = { projectId: "proj_1", accountId: "apn_absent" };
  expect(await beginRefresh(db, key, { generation: 1n, intent: ours, strict: true })).toEqual({ kind: "unusable" });
});

async function insert(
  key: { projectId: string; accountId: string },
  row: Partial<Insertable<CredentialsTable>>,
): Promise<void> {
  const whose = {
    ...key,
    environment: "development" as const,
    externalUserId: "user_1",
    appSlug: "acme",
    oauthAppId: "oa_1",
  };
  const sealed = { blob: Buffer.from("x"), dataKeyId: "dk_1", wrappedDataKey: Buffer.from("x"), kekId: "kek_1" };
  const expireTime = sql<Date>`now() + interval '1 hour'`;
  await db
    .insertInto("credentials")
    .values({ ...whose, ...sealed, expireTime, state: "ACTIVE", stateReason: "", scopes: [], generation: 1n, ...row })
    .execute();
}
