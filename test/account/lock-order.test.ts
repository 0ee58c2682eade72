// Who locks what first: a transaction that has to wait holds nothing that comes later in the order of schema.ts, so those who
// hold what it waits for can go on. Each test holds a row, lets the service wait for it, and looks at what it holds meanwhile.
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { longestUnsettled } from "../../services/account/account-changes.ts";
import { finishRevocation } from "../../services/account/account-revocations.ts";
import { insertEvents } from "../../services/account/events.ts";
import { sweepConnecting } from "../../services/account/sweep-connecting.ts";
import { abandonDeliveries } from "../../services/account/webhook-deliveries.ts";
import { insertWebhook } from "../../services/account/webhook-endpoints.ts";
import {
  binding,
  call,
  development,
  insertAccounts,
  newConnectToken,
  newOauthApp,
  newProject,
  startAccount,
} from "./harness.ts";

const account = await startAccount();
const { api, gateway, db, database, owner, vaultClient } = account;
const acme = await newProject(account);
await newOauthApp(account, acme.projectId);

const startNew = async () => {
  const token = await newConnectToken(account, acme.token);
  const request = { appSlug: "sandbox", browserBinding: binding };
  const { connectionId, authorizationUrl } = await api.startConnection(request, call(token));
  return { connectionId, state: new URL(authorizationUrl).searchParams.get("state") ?? "" };
};

/** Holds rows in a transaction of its own while something is done. */
async function holding<Answer>(
  rows: string,
  parameters: readonly unknown[],
  work: () => Promise<Answer>,
): Promise<Answer> {
  const holder = await openConnection({ ...database.owner, applicationName: "holder", statementTimeoutMs: 10_000 });
  try {
    await holder.query("begin");
    await holder.query(`${rows} for update`, parameters);
    return await work();
  } finally {
    await holder.query("rollback");
    await holder.end();
  }
}

/** Resolves when the service waits for a lock. */
async function serviceWaits(): Promise<void> {
  const waiting = `select from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock' and usename = 'deputy_account'`;
  const count = () => account.asSuperuser(async (admin) => (await admin.query(waiting)).length);
  await expect.poll(count, { timeout: 10_000 }).toBe(1);
}

/** Whether nobody holds the rows. */
async function isFree(rows: string, parameters: readonly unknown[]): Promise<boolean> {
  return owner.query(`${rows} for update nowait`, parameters).then(
    (found) => found.length > 0,
    () => false,
  );
}

const connectionRow = "select from connections where id = $1";
const accountRow = "select from accounts where id = $1";

test("who completes a connection waits for the project's deletion without holding the connection", async () => {
  const { connectionId, state } = await startNew();
  const request = { state, code: "the-code", browserBinding: binding };
  const completed = await holding("select from projects where id = $1", [acme.projectId], async () => {
    const completing = gateway.completeConnection(request, call());
    await serviceWaits();
    expect(await isFree(connectionRow, [connectionId])).toBe(true);
    return { completing };
  });
  const { connection } = await completed.completing;
  expect(connection?.state).toBe(ConnectionState.SUCCEEDED);
});

test("revocations of the same accounts end in the order in which they are claimed, not in that of ids", async () => {
  const [first = "", second = ""] = (await insertAccounts(account, acme.projectId, 2, "orders"))
    .toSorted()
    .toReversed();
  const times =
    "update accounts set state = 'REVOKING', revoke_time = now(), create_time = now() + $2::interval where id = $1";
  // In the table too the one that is to wait comes first.
  await owner.query(times, [second, "2 s"]);
  await owner.query(times, [first, "1 s"]);
  const ended = await holding(accountRow, [first], async () => {
    const finishing = finishRevocation(db, acme.projectId, [first, second], new Date());
    await serviceWaits();
    expect(await isFree(accountRow, [second])).toBe(true);
    return { finishing };
  });
  expect(await ended.finishing).toHaveLength(2);
});

test("a sweep leaves a connection that somebody is at, and does not wait for it", async () => {
  const [held, other] = [await startNew(), await startNew()];
  await owner.query("update connections set expire_time = now() - interval '1 hour' where state = 'PENDING'");
  const stateOf = async ({ connectionId }: typeof held) =>
    (await owner.query<{ state: string }>("select state from connections where id = $1", [connectionId]))[0]?.state;
  await holding(connectionRow, [held.connectionId], async () => {
    await sweepConnecting({ db, vault: vaultClient }, new Date());
    expect([await stateOf(held), await stateOf(other)]).toEqual(["PENDING", "FAILED"]);
  });
  await sweepConnecting({ db, vault: vaultClient }, new Date());
  expect(await stateOf(held)).toBe("FAILED");
});

test("who gives up a webhook's postings waits for one that is being noted without holding it", async () => {
  const { projectId } = await newProject(account);
  const key = { projectId, environment: development, endpointId: "whk_order" };
  await insertWebhook(db, { ...key, id: key.endpointId, url: "https://hooks.example" }, new Date());
  const event = {
    projectId,
    environment: development,
    externalUserId: "ann",
    accountId: "apn_order",
    data: {},
  } as const;
  await insertEvents(db, new Date(), { ...event, type: "account.dead" });
  const laneRow = "select from webhook_lanes where project_id = $1";
  const given = await holding(laneRow, [projectId], async () => {
    const giving = db.transaction().execute((tx) => abandonDeliveries(tx, key, new Date()));
    await serviceWaits();
    expect(await isFree("select from webhook_deliveries where project_id = $1", [projectId])).toBe(true);
    return { giving };
  });
  await given.giving;
  expect(await isFree(laneRow, [projectId])).toBe(false);
});

test("tells for how long a transaction has kept changes from settling", async () => {
  const holder = await openConnection({ ...database.owner, applicationName: "holder", statementTimeoutMs: 10_000 });
  await holder.query("begin");
  await holder.query("select pg_current_xact_id()");
  const { projectId } = await newProject(account);
  await insertAccounts(account, projectId, 1, "unsettled");
  await sleep(1_600);
  expect(await longestUnsettled(db)).toBeGreaterThanOrEqual(1);
  await holder.query("rollback");
  await holder.end();
  await expect.poll(() => longestUnsettled(db), { timeout: 10_000 }).toBe(0);
});
