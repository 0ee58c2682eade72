// The right to erasure across true processes: a user with a trace everywhere is deleted over REST, and then looked for in every
// row of both databases.
import { randomBytes } from "node:crypto";
import { expect, test } from "vitest";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { walkConnectPage } from "../../dev/connect-page.ts";
import { openStackDatabase, startTestStack } from "../support/stack.ts";

const stack = await startTestStack();
const { connection, account, proxy, call, ca, ports } = stack;
const environment = Environment.DEVELOPMENT;
const mark = randomBytes(6).toString("hex");
const externalUserId = `user-${mark}`;
/** What the provider calls its user, and so the account's name. */
const providerName = `person-${mark}`;
const restUrl = `${connection.gateway_url}/v1/connect/${connection.project_id}`;
const headers = { authorization: `Bearer ${call().token}`, "x-pd-environment": connection.environment };
const credential = { $case: "fields", value: { values: { api_key: "sandbox-key-canary-e5a5e" } } } as const;

/** The tables in which a text stands anywhere. */
async function mentions(name: "deputy_account" | "deputy_vault", text: string): Promise<readonly string[]> {
  const db = await openStackDatabase(stack, name);
  const found: string[] = [];
  const tables = await db.query<{ schema: string; name: string }>(
    `select schemaname as schema, tablename as name from pg_tables
     where schemaname not in ('pg_catalog', 'information_schema') order by 1, 2`,
  );
  for (const { schema, name: table } of tables) {
    const rows = await db.query(`select from ${schema}.${table} as one where one::text like $1`, [`%${text}%`]);
    if (rows.length > 0) found.push(table);
  }
  await db.end();
  return found;
}

const linkOf = async (more: object = {}) => {
  const webhookUri = `https://localhost:${ports.sandbox}/hooks?of=${externalUserId}`;
  return account.createConnectToken({ environment, externalUserId, webhookUri, ...more }, call());
};
const as = (token: string) => ({ deadlineMs: Date.now() + 20_000, token });

async function forward(accountId: string, url: string): Promise<number> {
  const request = { environment, externalUserId, accountId, method: "GET", url };
  return (await proxy.forward(request, call())).status;
}

/** A user with something everywhere: two accounts in use, a connection that waits, two that were left, failures, a webhook. */
async function leaveTraces() {
  await account.setWebhook({ environment, url: `https://localhost:${ports.sandbox}/hook` }, call());
  const { connectLinkUrl } = await linkOf({ appSlug: "sandbox" });
  expect((await walkConnectPage({ link: connectLinkUrl, name: providerName, ca })).status).toBeLessThan(400);
  const denied = await linkOf({ appSlug: "sandbox" });
  await walkConnectPage({ link: denied.connectLinkUrl, name: providerName, decision: "deny", ca });
  const appSlug = "sandbox_header_key";
  const keys = await account.createAccount({ environment, externalUserId, appSlug, credential }, call());
  const keysId = keys.account?.id ?? "";
  const { accounts } = await account.listAccounts({ environment, externalUserId, appSlug: "sandbox" }, call());
  const oauthId = accounts[0]?.id ?? "";
  expect(accounts[0]?.name).toContain(providerName);
  await account.updateAccount({ environment, accountId: keysId, name: `Keys of ${mark}` }, call());
  const careful = { requireVerification: true, successRedirectUri: `https://app.acme.com/${mark}` };
  const waiting = await account.createAccount({ appSlug, credential }, as((await linkOf(careful)).token));
  expect(waiting.connectionId).toMatch(/^con_/);
  const start = { appSlug: "sandbox", browserBinding: "the-browser-of-the-test-and-no-other" };
  await account.startConnection(start, as((await linkOf()).token));
  const customOauthClient = { clientId: "my-client", clientSecret: "sandbox-secret-of-my-own" };
  await account.startConnection({ ...start, customOauthClient }, as((await linkOf()).token));
  expect([await forward(oauthId, "/me"), await forward(keysId, "/x")]).toEqual([200, 200]);
  return { oauthId, keysId };
}

test("leaves the id of a deleted user nowhere but in the vault's audit", async () => {
  const { oauthId, keysId } = await leaveTraces();
  const everywhere = ["account_reservations", "accounts", "audit_entries", "connect_tokens", "connections", "events"];
  const all = [...everywhere, "external_users", "webhook_endpoints"];
  expect(await mentions("deputy_account", externalUserId)).toEqual(all);
  expect(await mentions("deputy_vault", externalUserId)).toEqual(["audit_entries", "authorizations", "credentials"]);

  const remove = () => fetch(`${restUrl}/users/${externalUserId}`, { method: "DELETE", headers });
  expect((await remove()).status).toBe(204);
  for (const accountId of [oauthId, keysId]) {
    await expect(forward(accountId, "/x")).rejects.toMatchObject({
      code: expect.stringMatching(/NOT_FOUND|FAILED_PRECONDITION/),
    });
  }
  // The mark is in the id and in every name.
  expect(await mentions("deputy_account", mark)).toEqual([]);
  expect(await mentions("deputy_vault", mark)).toEqual(["audit_entries"]);

  expect((await remove()).status).toBe(204);
  expect(await mentions("deputy_account", mark)).toEqual([]);
  const { receipts } = await account.deleteUser({ environment, externalUserId }, call());
  expect(receipts.map(({ accountId }) => accountId).sort()).toEqual([oauthId, keysId].sort());
  expect(receipts.every(({ jws }) => jws.split(".").length === 3)).toBe(true);
  const { users } = await account.listUsers({ environment, query: mark }, call());
  expect(users).toEqual([]);
});
