// A project's own apps across true processes: defined by their project, connected, forwarded through, refreshed, changed while
// in use, revoked, deleted; and for another project not there at all.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { walkConnectPage } from "../../dev/connect-page.ts";
import { readSecret } from "../../dev/state.ts";
import { letTokensEnd, openStackDatabase, startTestStack } from "../support/stack.ts";

const stack = await startTestStack();
const { connection, account, operator, proxy, call, ca } = stack;
const environment = Environment.DEVELOPMENT;
const apiKey = "sandbox-key-canary-0a1b2c";

/** An entry that comes along, as a project would bring it. */
const like = (slug: string, ownSlug: string) =>
  readFileSync(join(stack.state.catalog, `${slug}.yaml`), "utf8")
    .replace(`slug: ${slug}`, `slug: ${ownSlug}`)
    .replace("development: true\n", "")
    // Definitions lie open in the database, where no text may look like a key.
    .replaceAll("sandbox-key-", "sandbox.key.");
const keyApp = like("sandbox_header_key", "own_key");
const oauthApp = like("sandbox", "own_oauth");

await account.createApp({ definition: keyApp }, call());
await account.createApp({ definition: oauthApp }, call());
const clientSecret = readSecret(stack.state.passwordFiles["sandbox-client"]);
await account.createOauthApp({ appSlug: "own_oauth", clientId: "deputy", clientSecret }, call());
const stranger = await otherProject();
const credential = { $case: "fields", value: { values: { api_key: apiKey } } } as const;

async function otherProject() {
  const deadlineMs = Date.now() + 20_000;
  const { project } = await operator.createProject({ name: "Other" }, { deadlineMs });
  const projectId = project?.id ?? "";
  const { apiClient, clientSecret } = await operator.createApiClient({ projectId }, { deadlineMs });
  const value = { clientId: apiClient?.id ?? "", clientSecret };
  const { accessToken } = await account.issueAccessToken(
    { grant: { $case: "clientCredentials", value } },
    { deadlineMs },
  );
  return { projectId, call: () => ({ deadlineMs: Date.now() + 20_000, token: accessToken }) };
}

async function connectKey(externalUserId: string): Promise<string> {
  const request = { environment, externalUserId, appSlug: "own_key", credential };
  return (await account.createAccount(request, call())).account?.id ?? "";
}

async function connectOauth(externalUserId: string): Promise<string> {
  const request = { environment, externalUserId, appSlug: "own_oauth" };
  const { connectLinkUrl } = await account.createConnectToken(request, call());
  const ended = await walkConnectPage({ link: connectLinkUrl, name: externalUserId, ca });
  expect(ended.status, await ended.clone().text()).toBeLessThan(400);
  const { accounts } = await account.listAccounts({ environment, externalUserId }, call());
  return accounts.at(-1)?.id ?? "";
}

const forward = async (externalUserId: string, accountId: string, url: string) => {
  const answer = await proxy.forward({ environment, externalUserId, accountId, method: "GET", url }, call());
  const body: unknown = JSON.parse(answer.body.toString());
  return { ...answer, body };
};

test("forwards with a key by the project's definition, and at once by the changed one", async () => {
  const accountId = await connectKey("keys");
  const first = await forward("keys", accountId, "/x");
  expect(first).toMatchObject({ status: 200, body: { headers: { "x-api-key": expect.stringContaining("sha256:") } } });
  const query = keyApp
    .replace("/keys/header", "/keys/query")
    .replace(/headers:\n\s+x-api-key:/, "query:\n      api_key:");
  await account.updateApp({ appSlug: "own_key", definition: query }, call());
  const second = await forward("keys", accountId, "/x");
  expect(second).toMatchObject({ status: 200, body: { query: { api_key: expect.stringContaining("sha256:") } } });
  expect(second.body).not.toMatchObject({ headers: { "x-api-key": expect.anything() } });
  await account.updateApp({ appSlug: "own_key", definition: keyApp }, call());
});

test("connects by OAuth through the page, forwards, and refreshes", async () => {
  const accountId = await connectOauth("oauth");
  // Before its first use: whom a proxy leases to in the background does not see the refresh.
  await letTokensEnd(stack);
  expect(await forward("oauth", accountId, "/me")).toMatchObject({ status: 200, refreshed: true });
  expect(await forward("oauth", accountId, "/me")).toMatchObject({ status: 200, refreshed: false });
});

test("is not there for another project: not to see, not to connect, not to use", async () => {
  const accountId = await connectKey("isolated");
  const notThere = { code: "NOT_FOUND", reason: "APP_NOT_FOUND" };
  const { call: theirs } = stranger;
  for (const appSlug of ["own_key", "own_oauth"]) {
    await expect(account.getApp({ appSlug }, theirs())).rejects.toMatchObject(notThere);
    await expect(account.updateApp({ appSlug, definition: keyApp }, theirs())).rejects.toMatchObject(notThere);
    await expect(account.deleteApp({ appSlug, revokeAccounts: true }, theirs())).rejects.toMatchObject(notThere);
    const token = account.createConnectToken({ environment, externalUserId: "x", appSlug }, theirs());
    await expect(token).rejects.toMatchObject(notThere);
    await expect(account.createOauthApp({ appSlug, clientId: "c" }, theirs())).rejects.toMatchObject(notThere);
  }
  const request = { environment, externalUserId: "x", appSlug: "own_key", credential };
  await expect(account.createAccount(request, theirs())).rejects.toMatchObject(notThere);
  expect((await account.listApps({ query: "own_" }, theirs())).apps).toEqual([]);
  expect((await account.listApps({ query: "own_" }, call())).apps).toHaveLength(2);
  const use = { environment, externalUserId: "isolated", accountId, method: "GET", url: "/x" };
  await expect(proxy.forward(use, theirs())).rejects.toMatchObject({ code: "NOT_FOUND" });
  const rest = (headers: Record<string, string>) => fetch(`${connection.gateway_url}/v1/apps/own_key`, { headers });
  expect((await rest({})).status).toBe(404);
  expect((await rest({ authorization: `Bearer ${theirs().token}` })).status).toBe(404);
  expect((await rest({ authorization: `Bearer ${call().token}` })).status).toBe(200);
});

test("takes no inline credential for an own app", async () => {
  const inlineCredential = { appSlug: "own_key", fields: { api_key: apiKey } };
  const request = { environment, inlineCredential, method: "GET", url: "/x" };
  await expect(proxy.forward(request, call())).rejects.toMatchObject({
    ...{ code: "NOT_FOUND", reason: "APP_NOT_FOUND" },
    message: expect.stringContaining("not for a project's own"),
  });
});

test("refuses a definition for a host that is not public, and one of development's own that is not exempt", async () => {
  const port = new URL(connection.sandbox.api_url).port;
  for (const [host, fault] of [
    ["localhost:9999", "HOST"],
    ["10.0.0.1", "address"],
    [`127.0.0.1:${port}`, "address"],
  ] as const) {
    const definition = keyApp.replace("own_key", "elsewhere").replaceAll(`localhost:${port}`, host);
    const made = account.createApp({ definition }, call());
    await expect(made, fault).rejects.toMatchObject({
      ...{ code: "INVALID_ARGUMENT" },
      violations: expect.arrayContaining([expect.objectContaining({ field: "definition.proxy.base_url" })]),
    });
  }
  await expect(account.getApp({ appSlug: "elsewhere" }, call())).rejects.toMatchObject({ code: "NOT_FOUND" });
});

test("is deleted with its accounts: the provider told, every later request refused", async () => {
  const accountId = await connectOauth("leaving");
  expect((await forward("leaving", accountId, "/me")).status).toBe(200);
  await expect(account.deleteApp({ appSlug: "own_oauth" }, call())).rejects.toMatchObject({ reason: "APP_IN_USE" });
  await account.deleteApp({ appSlug: "own_oauth", revokeAccounts: true }, call());
  await expect(forward("leaving", accountId, "/me")).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
  await expect(account.getApp({ appSlug: "own_oauth" }, call())).rejects.toMatchObject({ code: "NOT_FOUND" });
  const db = await openStackDatabase(stack, "deputy_vault");
  const states = async () => {
    const text = "select state from revocations where account_id = $1";
    return (await db.query<{ state: string }>(text, [accountId])).map(({ state }) => state);
  };
  for (const giveUpMs = Date.now() + 20_000; (await states()).join() !== "DONE"; await sleep(100)) {
    expect(Date.now(), await states().then(String)).toBeLessThan(giveUpMs);
  }
  await db.end();
});
