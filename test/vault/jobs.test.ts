// The background jobs: what revocations do with strange answers and with faults of our own, the sweep, and a queue whose
// connections or processes die.
import { sql } from "kysely";
import { beforeEach, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { sweepAuthorizations } from "../../services/vault/authorizations.ts";
import { sweepTask } from "../../services/vault/jobs.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { connectAccount, destroy, shim } = vault;
const admin = { ...vault.database.superuser, applicationName: "t", statementTimeoutMs: 10_000 };

const revocationOf = (accountId: string) =>
  vault.db.selectFrom("revocations").selectAll().where("accountId", "=", accountId).executeTakeFirst();

/** Makes the next failure of an account's revocation its last. */
const expire = (accountId: string) =>
  vault.db
    .updateTable("revocations")
    .set({ expireTime: new Date(0) })
    .where("accountId", "=", accountId)
    .execute();

/** The kinds of token that the provider is asked to revoke. */
function unsupported(kinds: number) {
  let asked = 0;
  shim.misbehave((path) => {
    if (path !== "/token/revocation") return undefined;
    asked += 1;
    return asked > kinds ? { status: 400, body: '{"error":"unsupported_token_type"}' } : undefined;
  });
}

beforeEach(async () => {
  await vault.putClient();
});

test("gives up at once what the provider cannot revoke, having tried both tokens", async () => {
  const accountId = await connectAccount();
  const asked = shim.requests.length;
  unsupported(0);
  await destroy(accountId);
  await until(async () => (await revocationOf(accountId))?.state === "FAILED");
  expect(await revocationOf(accountId)).toMatchObject({ blob: null, lastError: "REVOCATION_UNSUPPORTED" });
  expect(shim.requests.slice(asked)).toEqual(["/token/revocation", "/token/revocation"]);
});

test("takes an access token that cannot be revoked by itself for gone with its refresh token", async () => {
  const accountId = await connectAccount();
  unsupported(1);
  await destroy(accountId);
  await until(async () => (await revocationOf(accountId))?.state === "DONE");
});

test("ends a revocation that meets a fault of our own, and wipes the token", async () => {
  const accountId = await connectAccount();
  const app = vault.catalog.get("sandbox");
  if (app?.oauth2 === undefined) throw new Error("the sandbox connects by OAuth");
  const { client_authentication } = app.oauth2.token;
  app.oauth2.token.client_authentication = "no such way" as never;
  await destroy(accountId);
  await until(async () => (await revocationOf(accountId))?.lastError === "INTERNAL");
  await expire(accountId);
  await until(async () => (await revocationOf(accountId))?.state === "FAILED");
  expect(await revocationOf(accountId)).toMatchObject({ blob: null, lastError: "INTERNAL" });
  app.oauth2.token.client_authentication = client_authentication;
});

test("works on when every connection to the database breaks", async () => {
  const accountId = await connectAccount();
  const connection = await openConnection(admin);
  await connection.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
  );
  await connection.end();
  // The first call after the break may meet a dead connection of the pool.
  await until(async () => (await destroy(accountId).catch(() => [])).length === 1);
  await until(async () => (await revocationOf(accountId))?.state === "DONE");
});

test("sweeps the verifier of an authorization that nobody came back for, and drops what ended long ago", async () => {
  const start = async () => {
    const request = { ...whose, accountId: vault.newAccountId(), appSlug: "sandbox", oauthAppId: vault.oauthAppId };
    const redirectUri = "http://127.0.0.1:9/oauth/callback";
    const { stateDigest } = await vault.asAccount.startAuthorization({ ...request, redirectUri }, soon());
    return Buffer.from(stateDigest);
  };
  const [waiting, abandoned, old] = [await start(), await start(), await start()];
  const end = (stateDigest: Buffer, secondsAgo: number) =>
    vault.db
      .updateTable("authorizations")
      .set({ expireTime: sql<Date>`now() - make_interval(secs => ${secondsAgo})` })
      .where("stateDigest", "=", stateDigest)
      .execute();
  await end(abandoned, 1);
  await end(old, 90_000);
  await sweepAuthorizations(vault.db);
  const rows = await vault.db
    .selectFrom("authorizations")
    .select(["stateDigest", "state", "failureReason", "blob"])
    .where("stateDigest", "in", [waiting, abandoned, old])
    .orderBy("expireTime")
    .execute();
  expect(rows).toMatchObject([
    { stateDigest: abandoned, state: "FAILED", failureReason: "AUTHORIZATION_EXPIRED", blob: null },
    { stateDigest: waiting, state: "PENDING", blob: expect.any(Buffer) },
  ]);
});

test("frees a job whose process was killed, so that it need not wait for hours", async () => {
  const connection = await openConnection(admin);
  // Never seen unlocked by the worker of this file.
  await connection.query(`
    begin;
    select graphile_worker.add_job('revoke_at_provider', '{"projectId":"proj_1","id":"rev_gone"}'::json);
    update graphile_worker._private_jobs set locked_by = 'killed', locked_at = now() - interval '11 minutes'
      where payload->>'id' = 'rev_gone';
    commit`);
  const jobs = () => connection.query("select 1 from graphile_worker._private_jobs where payload->>'id' = 'rev_gone'");
  expect(await jobs()).toHaveLength(1);
  await sql`select graphile_worker.add_job(${sweepTask})`.execute(vault.db);
  await until(async () => (await jobs()).length === 0);
  await connection.end();
});
