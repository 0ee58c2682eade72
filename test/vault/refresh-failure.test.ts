// What a provider's refusals do: one OAuth client at fault marks nobody, a provider that refuses everybody marks few, and an
// answer that was lost costs an account only where nothing else is possible.
import { expect, test } from "vitest";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { recordRefusal } from "../../services/vault/blast-radius.ts";
import { openVaultDatabase } from "../../services/vault/schema.ts";
import { addApp, granted } from "./stand-in-app.ts";
import { soon, until, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { db, rowOf, lease, makeDue, endTokenIn, shim, credential } = vault;
const refusing = await addApp(vault, "refusing");
const mass = await addApp(vault, "mass");
const crowd = await addApp(vault, "crowd");
const released = await addApp(vault, "released");
const classed = await addApp(vault, "classed", {
  errors: { name_at: "fault.code", terminal: [{ error: "token_gone" }], integration: [{ status: 403 }] },
});
const lenient = await addApp(vault, "lenient", { lifecycle: { rotation: "none" } });
const { lines } = await vault.startVault({ loop: true, worker: false, unguardedApps: ["released"] });

const statesOf = async (appSlug: string) =>
  (await db.selectFrom("credentials").select(["state", "stateReason"]).where("appSlug", "=", appSlug).execute()).map(
    ({ state, stateReason }) => `${state} ${stateReason}`,
  );
const countOf = async (appSlug: string, state: string) =>
  (await statesOf(appSlug)).filter((each) => each === state).length;
const breakerOf = (oauthAppId: string) =>
  db.selectFrom("oauthClients").selectAll().where("oauthAppId", "=", oauthAppId).executeTakeFirstOrThrow();
const invalidGrant = { status: 400, body: '{"error":"invalid_grant"}' };

test("an OAuth client that is refused is tried by one probe at a time, marks nobody, and recovers by itself", async () => {
  refusing.shim.misbehave(() => ({ status: 401, body: '{"error":"invalid_client"}' }));
  const accounts = await refusing.importAccounts(6);
  await until(async () => (await countOf("refusing", "ACTIVE OAUTH_CLIENT_REJECTED")) === 6);
  // Those that were under way when the first was refused, and none later.
  const sent = refusing.shim.requests.length;
  await makeDue(...accounts);
  await new Promise((resolve) => setTimeout(resolve, 700));
  expect(refusing.shim.requests.length).toBe(sent);
  expect(await countOf("refusing", "ACTIVE OAUTH_CLIENT_REJECTED")).toBe(6);
  // A token that works is leased all the same.
  expect((await lease(accounts[0] ?? "")).lease).toMatchObject({ generation: 1n });

  const probeNow = { probeTime: new Date(Date.now() - 1_000) };
  const letProbe = () =>
    db.updateTable("oauthClients").set(probeNow).where("oauthAppId", "=", refusing.oauthAppId).execute();
  await letProbe();
  await makeDue(...accounts);
  await until(() => refusing.shim.requests.length === sent + 1);
  await until(async () => (await breakerOf(refusing.oauthAppId)).rejections === 2);
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(refusing.shim.requests.length, "one probe for six accounts").toBe(sent + 1);

  refusing.shim.misbehave(() => granted());
  const [probing = "", ...waiting] = accounts;
  await letProbe();
  await makeDue(probing);
  await until(async () => (await breakerOf(refusing.oauthAppId)).probeTime === null);
  const released = async () => Promise.all(waiting.map(rowOf));
  await until(async () => (await released()).every(({ retryTime }) => retryTime === null), 2_000);
  const times = (await released()).map(({ nextRefreshTime }) => nextRefreshTime?.getTime() ?? 0);
  expect(Math.max(...times)).toBeLessThan(Date.now() + 31_000);
  expect(new Set(times).size, "spread").toBe(5);
  await makeDue(...accounts);
  await until(async () => (await countOf("refusing", "ACTIVE ")) === 6);
  expect(lines.some((line) => line.includes("its breaker is open"))).toBe(true);
});

test("new secrets close the breaker, and the accounts that waited come back", async () => {
  refusing.shim.misbehave(() => ({ status: 401, body: "" }));
  const accountId = await refusing.importAccount();
  await until(async () => (await rowOf(accountId)).stateReason === "OAUTH_CLIENT_REJECTED");
  refusing.shim.misbehave(() => granted());
  await refusing.putClient(["another"]);
  const { retryTime, nextRefreshTime } = await rowOf(accountId);
  expect(retryTime).toBeNull();
  expect(nextRefreshTime?.getTime()).toBeLessThan(Date.now() + 31_000);
  await makeDue(accountId);
  await until(async () => (await rowOf(accountId)).generation === 2n);
});

test("remembers which of its secrets an OAuth client works with", async () => {
  const accountId = await vault.connectAccount();
  await vault.putClient(["not yet valid", vault.clientSecret]);
  const before = vault.tokenRequests();
  await endTokenIn(accountId, -1);
  expect((await lease(accountId)).lease?.generation).toBe(2n);
  expect(vault.tokenRequests() - before, "the first secret is refused, the second works").toBe(2);
  await endTokenIn(accountId, -1);
  expect((await lease(accountId)).lease?.generation).toBe(3n);
  expect(vault.tokenRequests() - before, "the second goes first now").toBe(3);
  await vault.putClient();
});

test("marks ten accounts when a provider refuses everybody, keeps the others, and gets them back", async () => {
  mass.shim.misbehave(() => invalidGrant);
  const accounts = await mass.importAccounts(30);
  await until(async () => (await statesOf("mass")).every((state) => state !== "ACTIVE "));
  expect(await countOf("mass", "NEEDS_REAUTH INVALID_GRANT")).toBe(10);
  expect(await countOf("mass", "ACTIVE BLAST_RADIUS_GUARD")).toBe(20);
  const { credentialsByReason } = await (await vault.vault.as("operator")).getVaultStatus({}, soon());
  expect(credentialsByReason).toMatchObject({ BLAST_RADIUS_GUARD: 20n });
  expect(lines.some((line) => line.includes("too many grants of an app were refused at once"))).toBe(true);

  // It does not wear off: those that are kept are refused again, long after the ten.
  const longAgo = new Date(Date.now() - 3_600_000);
  await db.updateTable("credentials").set({ updateTime: longAgo }).where("appSlug", "=", "mass").execute();
  const kept = (await Promise.all(accounts.map(rowOf))).filter(({ state }) => state === "ACTIVE");
  const sent = mass.shim.requests.length;
  await makeDue(...kept.map(({ accountId }) => accountId));
  await until(() => mass.shim.requests.length >= sent + 20);
  expect(await countOf("mass", "NEEDS_REAUTH INVALID_GRANT")).toBe(10);

  mass.shim.misbehave(() => granted());
  await until(async () =>
    (await Promise.all(kept.map((row) => rowOf(row.accountId)))).every((row) => row.failures >= 2),
  );
  await makeDue(...kept.map(({ accountId }) => accountId));
  await until(async () => (await countOf("mass", "ACTIVE ")) === 20);
});

test("marks ten and no more when thirty refusals are noted at the same moment", async () => {
  const accounts = await crowd.importAccounts(30, { isDue: false });
  const intent = { id: "int_1", by: "int_2" };
  const sent = { intentId: intent.id, intentBy: intent.by, intentTime: new Date() };
  await db.updateTable("credentials").set(sent).where("appSlug", "=", "crowd").execute();
  const rows = await Promise.all(accounts.map(rowOf));
  const access = { ...vault.database.runtime, applicationName: "test", statementTimeoutMs: 10_000 };
  const wide = openVaultDatabase({ ...access, maxConnections: 15 });
  const refusal = { reason: "INVALID_GRANT", retrySeconds: 60, guarded: true };
  try {
    const outcomes = await Promise.all(
      rows.map((row) => recordRefusal(wide, { ...row, readTime: new Date() }, intent, refusal)),
    );
    expect(outcomes.filter((outcome) => outcome === "dead")).toHaveLength(10);
    expect(outcomes.filter((outcome) => outcome === "held")).toHaveLength(20);
  } finally {
    await wide.destroy();
  }
});

test("marks as many as are refused where the operator has said so", async () => {
  released.shim.misbehave(() => invalidGrant);
  await released.importAccounts(15);
  await until(async () => (await countOf("released", "NEEDS_REAUTH INVALID_GRANT")) === 15);
});

test("reads answers as the app's entry says", async () => {
  const [gone, refused] = await classed.importAccounts(2, { isDue: false });
  classed.shim.misbehave(() => ({ status: 200, body: '{"fault":{"code":"token_gone"}}' }));
  await makeDue(gone ?? "");
  await until(async () => (await rowOf(gone ?? "")).state === "NEEDS_REAUTH");
  expect((await rowOf(gone ?? "")).stateReason).toBe("GRANT_REFUSED");
  classed.shim.misbehave(() => ({ status: 403, body: "{}" }));
  await makeDue(refused ?? "");
  await until(async () => (await rowOf(refused ?? "")).stateReason === "OAUTH_CLIENT_REJECTED");
});

test("strict: an answer that is lost is not asked for again until a minute before the token's end", async () => {
  const accountId = await vault.connectAccount();
  shim.misbehave((path) => (path === "/token" ? "lose answer" : undefined));
  const sent = vault.tokenRequests();
  await endTokenIn(accountId, 600);
  await makeDue(accountId);
  await until(async () => (await rowOf(accountId)).state === "UNKNOWN");
  expect(vault.tokenRequests() - sent).toBe(1);
  const { expireTime, nextRefreshTime, retryTime, stateReason } = await rowOf(accountId);
  expect(stateReason).toBe("ANSWER_LOST");
  expect(nextRefreshTime).toEqual(retryTime);
  expect(((expireTime?.getTime() ?? 0) - (retryTime?.getTime() ?? 0)) / 1000).toBeCloseTo(60, -1);
  expect((await lease(accountId)).lease).toMatchObject({ generation: 1n });
  // When it is tried, the provider says what became of it: that is told apart from a refusal that is not our doing.
  shim.misbehave(() => invalidGrant);
  await makeDue(accountId);
  await until(async () => (await rowOf(accountId)).state === "NEEDS_REAUTH");
  expect((await rowOf(accountId)).stateReason).toBe("GRANT_LOST");
});

test("strict: a request of a process that is gone counts as sent, and the old token is used to its end", async () => {
  const accountId = await vault.connectAccount();
  const gone = { intentId: "int_x", intentBy: "int_gone", intentTime: new Date(Date.now() - 31_000) };
  await db.updateTable("credentials").set(gone).where("accountId", "=", accountId).execute();
  const sent = vault.tokenRequests();
  await makeDue(accountId);
  await until(async () => (await rowOf(accountId)).state === "UNKNOWN");
  expect(vault.tokenRequests()).toBe(sent);
  const entries = await db
    .selectFrom("auditEntries")
    .selectAll()
    .where("accountId", "=", accountId)
    .orderBy("id")
    .execute();
  expect(entries.at(-1)).toMatchObject({ action: "credential.refresh_failed", reason: "ANSWER_LOST" });
  expect((await lease(accountId)).lease).toMatchObject({ generation: 1n });
  await endTokenIn(accountId, 50);
  await makeDue(accountId);
  await until(async () => (await rowOf(accountId)).generation === 2n);
  expect(await credential(accountId)).toMatchObject({ state: CredentialState.ACTIVE, stateReason: "" });
});

test("with a reuse grace a lost answer is asked for again at once, and nothing is lost", async () => {
  const sandbox = vault.catalog.get("sandbox");
  if (sandbox === undefined) throw new Error("no sandbox");
  vault.catalog.set("sandbox", { ...sandbox, lifecycle: { ...sandbox.lifecycle, reuse_grace_seconds: 30 } });
  shim.allowReuse(30_000);
  const accountId = await vault.connectAccount();
  let lost = 0;
  shim.misbehave(() => (lost++ === 0 ? "lose answer" : undefined));
  await endTokenIn(accountId, -1);
  const { lease: fresh } = await lease(accountId);
  expect(fresh).toMatchObject({ generation: 2n });
  expect(await vault.callApi(fresh)).toBe(200);
  vault.catalog.set("sandbox", sandbox);
});

test("where nothing rotates a lost answer is asked for again at once", async () => {
  let lost = 0;
  lenient.shim.misbehave(() => (lost++ === 0 ? "break" : granted({ refresh_token: undefined })));
  const accountId = await lenient.importAccount();
  await until(async () => (await rowOf(accountId)).generation === 2n);
  expect(lost).toBe(2);
});

test("an account that was taken for dead lives when the refresh that was under way brings its token after all", async () => {
  const gate = Promise.withResolvers<void>();
  let held = false;
  lenient.shim.misbehave(async () => {
    held = true;
    await gate.promise;
    return granted();
  });
  const accountId = await lenient.importAccount();
  await until(() => held);
  const dead = { state: "NEEDS_REAUTH" as const, stateReason: "INVALID_GRANT", nextRefreshTime: null };
  await db.updateTable("credentials").set(dead).where("accountId", "=", accountId).execute();
  gate.resolve();
  await until(async () => (await rowOf(accountId)).generation === 2n);
  expect(await rowOf(accountId)).toMatchObject({ state: "ACTIVE", stateReason: "" });
});

test("no line of the log holds a token", () => {
  expect(lines.length).toBeGreaterThan(50);
  expect(lines.join("")).not.toContain("sandbox-token-");
});
