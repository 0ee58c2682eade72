// The list of changed credentials: nothing is missed, whatever the order of the commits, and nothing is told of what concerns
// nobody.
import { sql } from "kysely";
import { expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import type { StatusError } from "#libs/errors.ts";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { asAccount, connectAccount, db } = vault;

let place = "";
/** Waits until every transaction has ended that runs now, on the whole server: before that, changes are held back. */
async function settle(): Promise<void> {
  const marks = async () =>
    (
      await sql<{ oldest: string; next: string }>`
        select pg_snapshot_xmin(now)::text as oldest, pg_snapshot_xmax(now)::text as next
        from pg_current_snapshot() as now`.execute(db)
    ).rows[0];
  const next = BigInt((await marks())?.next ?? 0);
  await until(async () => BigInt((await marks())?.oldest ?? 0) >= next);
}

/** Everything new since the last call. */
async function changes(pageSize = 500) {
  await settle();
  return changesNow(pageSize);
}

/** The same without waiting for what runs. */
async function changesNow(pageSize = 500) {
  const all = [];
  for (;;) {
    const page = await asAccount.listCredentialChanges({ pageToken: place, pageSize }, soon());
    const isEnd = page.changes.length === 0 && page.nextPageToken === place;
    place = page.nextPageToken;
    all.push(...page.changes);
    if (isEnd) return all;
  }
}
const ids = (found: Awaited<ReturnType<typeof changes>>) => found.map(({ credential }) => credential?.accountId);

async function storeKeys(): Promise<string> {
  const accountId = vault.newAccountId();
  const material = { $case: "fields", value: { values: { api_key: "sandbox-key-0123456789" } } } as const;
  await asAccount.storeCredential({ ...whose, accountId, appSlug: "sandbox_header_key", material }, soon());
  return accountId;
}

test("goes through all credentials first, in pages, and then through the changes alone", async () => {
  const accounts = [];
  for (let n = 0; n < 5; n++) accounts.push(await storeKeys());
  expect(new Set(ids(await changes(2)))).toEqual(new Set(accounts));
  expect(await changes()).toEqual([]);
  const added = await storeKeys();
  expect(await changes()).toMatchObject([
    { projectId: "proj_1", environment: whose.environment, credential: { accountId: added, generation: 1n } },
  ]);
});

test("tells of a refresh, a failure and a refusal, with what is known of each", async () => {
  const accountId = await connectAccount();
  await changes();
  await asAccount.refreshCredential({ ...whose, accountId }, soon());
  const [refreshed, ...more] = await changes();
  expect(more).toEqual([]);
  expect(refreshed?.credential).toMatchObject({ accountId, state: CredentialState.ACTIVE, generation: 2n });
  expect(refreshed?.credential?.lastRefreshTime).toBeInstanceOf(Date);
  expect(refreshed?.credential?.nextRefreshTime).toBeInstanceOf(Date);

  vault.shim.misbehave((path) => (path === "/token" ? { status: 503, body: "" } : undefined));
  await asAccount.refreshCredential({ ...whose, accountId }, soon());
  expect(await changes()).toMatchObject([{ failures: 1, credential: { accountId, stateReason: "PROVIDER_FAILING" } }]);

  vault.shim.misbehave((path) => (path === "/token" ? { status: 400, body: '{"error":"invalid_grant"}' } : undefined));
  await vault.makeDue(accountId);
  await asAccount.refreshCredential({ ...whose, accountId }, soon()).catch((error: StatusError) => {
    expect(error.reason).toBe("NEEDS_REAUTH");
  });
  const [refused] = await changes();
  expect(refused?.credential).toMatchObject({ accountId, state: CredentialState.NEEDS_REAUTH });
});

test("does not tell of intents and rewrapped keys", async () => {
  const accountId = await connectAccount();
  await changes();
  const intent = { intentId: "int_1", intentBy: "vlt_1", intentTime: new Date() };
  await db.updateTable("credentials").set(intent).where("accountId", "=", accountId).execute();
  await db.updateTable("credentials").set({ kekId: "another" }).where("accountId", "=", accountId).execute();
  expect(await changes()).toEqual([]);
});

test("misses none whose transaction began before and commits after one that was told", async () => {
  const [slow, quick] = [await storeKeys(), await storeKeys()];
  await changes();
  const access = { ...vault.database.runtime, applicationName: "t", statementTimeoutMs: 10_000 };
  const connection = await openConnection(access);
  try {
    await connection.query("begin");
    await connection.query("update credentials set state_reason = 'SLOW' where account_id = $1", [slow]);
    await db.updateTable("credentials").set({ stateReason: "QUICK" }).where("accountId", "=", quick).execute();
    // Held back: below the mark nothing new may appear.
    expect(await changesNow()).toEqual([]);
    await connection.query("commit");
    expect(ids(await changes()).sort()).toEqual([slow, quick].sort());
  } finally {
    await connection.end();
  }
});

test("misses none of many that are written at once while it reads", async () => {
  const accounts = [];
  for (let n = 0; n < 40; n++) accounts.push(await storeKeys());
  await changes();
  const seen = new Map<string, string>();
  let writing = true;
  const reading = (async () => {
    while (writing) {
      for (const { credential } of await changesNow(7))
        seen.set(credential?.accountId ?? "", credential?.stateReason ?? "");
    }
  })();
  await Promise.all(
    accounts.map(async (accountId, n) => {
      for (let round = 0; round < 5; round++) {
        await db.transaction().execute(async (transaction) => {
          const stateReason = `ROUND_${round}`;
          await transaction
            .updateTable("credentials")
            .set({ stateReason })
            .where("accountId", "=", accountId)
            .execute();
          await sql`select pg_sleep(${((n * 7 + round * 3) % 10) / 1000})`.execute(transaction);
        });
      }
    }),
  );
  writing = false;
  await reading;
  for (const { credential } of await changes()) seen.set(credential?.accountId ?? "", credential?.stateReason ?? "");
  expect([...seen].filter(([, reason]) => reason === "ROUND_4")).toHaveLength(accounts.length);
});

test("begins anew with a place of the future, as after a backup was put back", async () => {
  const future = Buffer.from(JSON.stringify(["changes", "9999999999999", "", ""])).toString("base64url");
  place = future;
  const { count } = await db
    .selectFrom("credentials")
    .select(({ fn }) => fn.countAll<bigint>().as("count"))
    .executeTakeFirstOrThrow();
  expect(new Set(ids(await changes(10))).size).toBe(Number(count));
});

test("refuses a place that no list gave, and everybody but the account service", async () => {
  const asked = asAccount.listCredentialChanges({ pageToken: "nonsense" }, soon());
  await expect(asked).rejects.toMatchObject({ reason: "INVALID_FIELD" });
  await expect(vault.asProxy.listCredentialChanges({}, soon())).rejects.toMatchObject({ reason: "CALLER_NOT_ALLOWED" });
});
