// Members across true processes: tokens as IssueAccessToken gives them, judged by the account service, carried by the gateway
// and the proxy, and obeyed by the vault's leases.
import { expect, test } from "vitest";
import { AccountSharing, AccountUse } from "#proto/deputy/account/v1/accounts.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { MemberRole } from "#proto/deputy/account/v1/projects.ts";
import { startTestStack } from "../support/stack.ts";

const stack = await startTestStack();
const { connection, account, proxy } = stack;
const environment = Environment.DEVELOPMENT;
const externalUserId = "shared-user";
const restUrl = `${connection.gateway_url}/v1/connect/${connection.project_id}`;
const credential = { $case: "fields", value: { values: { api_key: "sandbox-key-canary-3e3be" } } } as const;
const denied = { code: "PERMISSION_DENIED", reason: "MEMBER_NOT_ALLOWED" };
const absent = { code: "NOT_FOUND", message: "No such account." };

/** What a member's calls are made with. */
async function member(memberId: string, role: MemberRole) {
  const { client_id: clientId, client_secret: clientSecret } = connection;
  const grant = { $case: "clientCredentials", value: { clientId, clientSecret, actor: { memberId, role } } } as const;
  const { accessToken: token } = await account.issueAccessToken({ grant }, { deadlineMs: Date.now() + 10_000 });
  const headers = { authorization: `Bearer ${token}`, "x-pd-environment": connection.environment };
  const call = () => ({ deadlineMs: Date.now() + 20_000, token });
  return {
    call,
    forward: async (accountId: string, use?: AccountUse) => {
      const request = { environment, externalUserId, accountId, method: "GET", url: "/x", ...(use && { use }) };
      return (await proxy.forward(request, call())).status;
    },
    /** The ids of the accounts that the member sees, over gRPC and over REST. */
    seen: async () => {
      const { accounts } = await account.listAccounts({ environment, externalUserId }, call());
      const answer = await fetch(`${restUrl}/accounts?external_user_id=${externalUserId}`, { headers });
      const page = (await answer.json()) as { data: { id: string }[]; page_info: { total_count: number } };
      expect(page.page_info.total_count).toBe(accounts.length);
      expect(page.data.map(({ id }) => id)).toEqual(accounts.map(({ id }) => id));
      return accounts.map(({ id }) => id);
    },
    rest: async (path: string, method = "GET") => {
      const answer = await fetch(`${restUrl}${path}`, { method, headers });
      const text = await answer.text();
      return { status: answer.status, code: (text === "" ? {} : (JSON.parse(text) as { code?: string })).code };
    },
    proxied: (accountId: string) => {
      const target = Buffer.from("/x").toString("base64url");
      return `/proxy/${target}?external_user_id=${externalUserId}&account_id=${accountId}`;
    },
  };
}

const ada = await member("ada", MemberRole.MEMBER);
const bob = await member("bob", MemberRole.MEMBER);
const root = await member("root", MemberRole.ADMIN);

async function connect({ call }: typeof ada): Promise<string> {
  const request = { environment, externalUserId, appSlug: "sandbox_header_key", credential };
  return (await account.createAccount(request, call())).account?.id ?? "";
}

test("a private account is its owner's: not another member's to see or use, an admin's to manage and not to use", async () => {
  const accountId = await connect(ada);
  expect(await ada.forward(accountId)).toBe(200);
  expect(await ada.rest(ada.proxied(accountId))).toMatchObject({ status: 200 });
  expect([await ada.seen(), await bob.seen(), await root.seen()]).toEqual([[accountId], [], [accountId]]);

  await expect(bob.forward(accountId)).rejects.toMatchObject(absent);
  expect(await bob.rest(bob.proxied(accountId))).toEqual({ status: 404, code: "ACCOUNT_NOT_FOUND" });
  expect(await bob.rest(`/accounts/${accountId}`, "DELETE")).toEqual({ status: 404, code: "ACCOUNT_NOT_FOUND" });
  expect(await bob.forward(accountId, AccountUse.TEST)).toBe(200);
  await expect(root.forward(accountId)).rejects.toMatchObject(denied);
  expect(await root.rest(root.proxied(accountId))).toEqual({ status: 403, code: "MEMBER_NOT_ALLOWED" });
  // No lease that another was given is good for who may not.
  expect(await ada.forward(accountId)).toBe(200);
  await expect(bob.forward(accountId)).rejects.toMatchObject(absent);
  await account.deleteAccount({ environment, accountId }, root.call());
  await expect(ada.forward(accountId)).rejects.toMatchObject({ reason: "ACCOUNT_REVOKED" });
});

test("a shared account is used by every member and managed by its owner and admins, until it is private again", async () => {
  const accountId = await connect(ada);
  const share = (sharing: AccountSharing) => ({ environment, accountId, sharing });
  await account.updateAccount(share(AccountSharing.WORKSPACE), ada.call());
  expect(await bob.seen()).toEqual([accountId]);
  expect(await bob.forward(accountId)).toBe(200);
  expect(await bob.rest(bob.proxied(accountId))).toMatchObject({ status: 200 });
  const rename = account.updateAccount({ environment, accountId, name: "mine" }, bob.call());
  await expect(rename).rejects.toMatchObject(denied);
  expect(await bob.rest(`/accounts/${accountId}`, "DELETE")).toEqual({ status: 403, code: "MEMBER_NOT_ALLOWED" });
  const target = { $case: "externalUserId", value: externalUserId } as const;
  const revoked = await Array.fromAsync(account.revokeAllAccounts({ environment, target }, bob.call()));
  expect(revoked).toEqual([]);
  await account.updateAccount({ environment, accountId, name: "ours" }, root.call());

  await account.updateAccount(share(AccountSharing.PRIVATE), ada.call());
  const giveUpMs = Date.now() + 15_000;
  const outcome = () => bob.forward(accountId).then(String, ({ code }) => code);
  // A right that is taken away ends with the leases there are.
  while ((await outcome()) !== "NOT_FOUND") expect(Date.now()).toBeLessThan(giveUpMs);
  expect(await ada.forward(accountId)).toBe(200);
});
