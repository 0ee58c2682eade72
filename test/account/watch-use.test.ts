// What watchers are told who ask for changes of use alone.
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { AccountState } from "#proto/deputy/account/v1/accounts.ts";
import type { WatchAccountsResponse } from "#proto/deputy/account/v1/events.ts";
import { call, insertAccounts, newProject, startAccount } from "./harness.ts";

const account = await startAccount();
const { proxy, owner } = account;

test("tells of all that changed together at once, and of nothing that does not matter to use", async () => {
  const ids = await insertAccounts(account, (await newProject(account)).projectId, 3, "crowd");
  const leaving = new AbortController();
  const messages: WatchAccountsResponse[] = [];
  const ended = (async () => {
    const request = { changesOnly: true, changesOfUseOnly: true };
    for await (const message of proxy.watchAccounts(request, { ...call(), signal: leaving.signal })) {
      messages.push(message);
    }
  })();
  const heartbeat = async (count: number) => {
    await expect
      .poll(() => messages.filter(({ resumeToken }) => resumeToken !== "").length, { timeout: 10_000 })
      .toBe(count);
  };
  await heartbeat(1);
  const set = (change: string) => owner.query(`update accounts set ${change} where id = any($1)`, [ids]);
  await set("name = 'new'");
  await set("state = 'REVOKING', revoke_time = now()");
  await expect.poll(() => messages.flatMap(({ useChanges }) => useChanges).length, { timeout: 10_000 }).toBe(3);
  await set("external_user_id = 'bob'");
  await set("state = 'REVOKED'");
  await sleep(1_500);
  const told = messages.filter(({ useChanges }) => useChanges.length > 0);
  expect(told).toHaveLength(1);
  expect(told[0]?.useChanges.map(({ accountId }) => accountId).sort()).toEqual([...ids].sort());
  expect(told[0]?.useChanges.map(({ state }) => state)).toEqual(ids.map(() => AccountState.REVOKING));
  expect(messages.flatMap((message) => message.account ?? [])).toEqual([]);
  leaving.abort();
  await expect(ended).rejects.toMatchObject({ code: "CANCELLED" });
});
