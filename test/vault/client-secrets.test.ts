// An OAuth client's secrets are replaced without downtime: the new one stands beside the old one, each use of the client finds
// the one that the provider takes, all uses begin with it from then on, and the log says when the others are unused.
import { beforeEach, expect, test } from "vitest";
import { findOauthClient } from "../../services/vault/oauth-clients.ts";
import { soon, until, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { db, shim, clientSecret, oauthAppId } = vault;

const uses = ["a refresh", "a code exchange", "a revocation"] as const;

/** Prepares a use of the client; what is given does it, once. */
async function prepare(use: (typeof uses)[number]): Promise<() => Promise<unknown>> {
  const accountId = vault.newAccountId();
  const { redirect } = await vault.consent(accountId);
  const complete = () => vault.asAccount.completeAuthorization(redirect, soon());
  if (use === "a code exchange") return complete;
  await complete();
  if (use === "a refresh") return async () => vault.vault.refresher.refresh(await vault.rowOf(accountId));
  return async () => {
    await vault.destroy(accountId);
    await until(async () => (await revocationOf(accountId))?.state === "DONE");
  };
}

const revocationOf = (accountId: string) =>
  db.selectFrom("revocations").selectAll().where("accountId", "=", accountId).executeTakeFirst();
const clientRow = () =>
  db.selectFrom("oauthClients").selectAll().where("oauthAppId", "=", oauthAppId).executeTakeFirstOrThrow();
/** What is sealed, in the order in which it is tried. */
const secretsNow = async () =>
  (await findOauthClient({ db, secrets: vault.vault.secrets }, { projectId: "proj_1", oauthAppId, appSlug: "sandbox" }))
    ?.secrets;
const told = () =>
  vault.vault.lines.filter((line) => line.includes("the others are unused")).map((line) => JSON.parse(line));
/** How many requests with the client's secret the work makes; a revocation makes one for each of its two tokens. */
async function countRequests(work: () => Promise<unknown>): Promise<number> {
  const before = shim.requests.length;
  await work();
  return shim.requests.slice(before).filter((path) => path.startsWith("/token")).length;
}
const fewest = { "a refresh": 1, "a code exchange": 1, "a revocation": 2 };

beforeEach(async () => {
  await vault.putClient();
  vault.vault.lines.length = 0;
});

test.each(uses)(
  "%s that finds the second secret to be the one that works tells all uses, and the log",
  async (first) => {
    const learning = await prepare(first);
    const later = await Promise.all(uses.map(async (use) => ({ use, work: await prepare(use) })));
    await vault.putClient(["not yet valid", clientSecret]);
    expect(await clientRow()).toMatchObject({ workingSecret: 0, workingSecretTime: null });
    vault.vault.lines.length = 0;
    expect(await countRequests(learning), "the first secret is refused").toBe(fewest[first] * 2);
    await until(async () => (await clientRow()).workingSecret === 1);
    for (const { use, work } of later) expect(await countRequests(work), use).toBe(fewest[use]);
    expect(told()).toMatchObject([{ oauthAppId, secret: 2, unusedSecrets: 1 }]);
  },
);

test("says once that the first secret works, though nothing was refused: the others may go", async () => {
  const [one, other] = [await prepare("a refresh"), await prepare("a code exchange")];
  await vault.putClient([clientSecret, "old"]);
  vault.vault.lines.length = 0;
  await one();
  await other();
  expect(told()).toMatchObject([{ oauthAppId, secret: 1, unusedSecrets: 1 }]);
  expect((await clientRow()).workingSecretTime).not.toBeNull();
});

test("what is learned of secrets that were replaced meanwhile is not noted of the new ones", async () => {
  const refresh = await prepare("a refresh");
  await vault.putClient(["not yet valid", clientSecret]);
  let replaced: Promise<unknown> | undefined;
  shim.misbehave(async () => {
    replaced ??= vault.putClient([clientSecret, "old"]);
    await replaced;
    return undefined;
  });
  await refresh();
  expect(await clientRow()).toMatchObject({ workingSecret: 0, workingSecretTime: null });
});

test("a revocation that was queued under an old secret is sent with the new one", async () => {
  const revoke = await prepare("a revocation");
  await vault.putClient(["ended at the provider"]);
  const revoking = revoke();
  await until(() => shim.requests.at(-1) === "/token/revocation");
  await vault.putClient();
  await revoking;
});

test("a new secret put beside those kept is tried first, and the one in use goes on working", async () => {
  const [refresh, exchange] = [await prepare("a refresh"), await prepare("a code exchange")];
  await vault.putClient(["mistyped"], true);
  expect(await countRequests(refresh), "the new secret is refused, the old one taken").toBe(2);
  await until(async () => (await clientRow()).workingSecret === 1);
  await vault.putClient(["not yet valid"], true);
  expect(await countRequests(exchange), "the one that worked comes before the mistyped one").toBe(2);
  expect(told().at(-1)).toMatchObject({ secret: 2, unusedSecrets: 2 });
});

test("keeps a client's secrets when none is given, and five of them at most", async () => {
  const refresh = await prepare("a refresh");
  await vault.putClient([], true);
  await refresh();
  for (const secret of ["b", "c", "b", "d", "e", "f"]) await vault.putClient([secret], true);
  expect(await secretsNow()).toEqual(["f", "e", "d", "b", "c"]);
});

test("keeps nothing of a client that was destroyed", async () => {
  await vault.asAccount.destroyOauthClient({ projectId: "proj_1", oauthAppId }, soon());
  await vault.putClient(["new"], true);
  expect(await secretsNow()).toEqual(["new"]);
});

test("of two secrets put at the same time with the others kept, none is lost without a word", async () => {
  const answers = await Promise.allSettled([vault.putClient(["one"], true), vault.putClient(["two"], true)]);
  const refused = answers.filter(({ status }) => status === "rejected");
  for (const answer of refused) expect(answer).toMatchObject({ reason: { reason: "CONCURRENT_CHANGE" } });
  expect(await secretsNow()).toHaveLength(1 + answers.length - refused.length);
});
