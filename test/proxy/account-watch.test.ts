// What the proxy does with what the account service tells it on WatchAccounts: leases of an account that changed are asked for
// again, and a stream that is lost goes on where it was.
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";
import { createClient } from "#libs/rpc-client.ts";
import type { RunningServer } from "#libs/rpc-server.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Account, AccountState } from "#proto/deputy/account/v1/accounts.ts";
import type { AccountUseChange, WatchAccountsRequest, WatchAccountsResponse } from "#proto/deputy/account/v1/events.ts";
import { watchAccounts } from "../../services/proxy/watch-accounts.ts";
import { startStandIn } from "../support/stand-in-service.ts";
import { testTls } from "../support/tls.ts";
import { forwardRequest, ok, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

type Word = Partial<WatchAccountsResponse> | "cut";

let fixture: ProxyFixture;
let account: RunningServer;
let client: ReturnType<typeof createClient<typeof AccountServiceDefinition>>;
let watch: ReturnType<typeof watchAccounts>;
const lines: string[] = [];
/** The accounts whose leases were dropped. */
const noted: string[] = [];
/** Streams that were opened, and the way to speak on the last one. */
const opened: WatchAccountsRequest[] = [];
let fault: StatusError | undefined;
let say: (word: Word) => void = () => undefined;

async function* standIn(request: WatchAccountsRequest): AsyncGenerator<WatchAccountsResponse> {
  opened.push(request);
  const refusal = fault;
  fault = undefined;
  if (refusal !== undefined) throw refusal;
  const words: Word[] = [{ resumeToken: `begin-${opened.length}` }];
  let wake = () => {};
  say = (word) => {
    words.push(word);
    wake();
  };
  for (;;) {
    for (const word of words.splice(0)) {
      if (word === "cut") return;
      yield { account: undefined, resumeToken: "", changesUse: false, useChanges: [], ...word };
    }
    await new Promise<void>((resolve) => {
      wake = resolve;
      if (words.length > 0) resolve();
    });
  }
}

beforeAll(async () => {
  fixture = await startProxyFixture();
  account = await startStandIn({
    definition: AccountServiceDefinition,
    service: "account",
    callers: { watchAccounts: [{ service: "proxy" }] },
    handlers: { watchAccounts: standIn },
  });
  client = createClient(AccountServiceDefinition, {
    address: `127.0.0.1:${account.internalPort}`,
    tls: await testTls("proxy"),
    service: "account",
  });
});
afterAll(async () => {
  client.close();
  await account.drain(100);
  await fixture.stop();
});
beforeEach(async () => {
  fixture.reset();
  opened.length = 0;
  lines.length = 0;
  const log = createLogger("proxy", "info", { write: (line) => lines.push(line) });
  const holds = {
    invalidate(...[whose, news]: Parameters<typeof fixture.holds.invalidate>) {
      fixture.holds.invalidate(whose, news);
      noted.push(whose.accountId);
    },
  };
  watch = watchAccounts({ account: client, holds, log });
  await expect.poll(() => lines.join(""), { timeout: 10_000, interval: 5 }).toContain("the account service is watched");
});
afterEach(() => watch.stop());

const forward = () =>
  fixture.gateway.forward(forwardRequest(), { token: fixture.token, deadlineMs: Date.now() + 20_000 });

function changed(...changes: Partial<AccountUseChange>[]): Partial<WatchAccountsResponse> {
  const whose = { accountId: "apn_1", projectId: "proj_1", state: AccountState.ACTIVE };
  const useChanges = (changes.length === 0 ? [{}] : changes).map((change) => ({ ...whose, ...change }));
  return { resumeToken: "after-change", changesUse: true, useChanges };
}

/** Waits until what was said before this has been heard: words come in order. */
async function heard(): Promise<void> {
  const id = `apn_last_${noted.length}`;
  say({ ...changed({ accountId: id }), resumeToken: "heard" });
  await expect.poll(() => noted, { timeout: 10_000, interval: 5 }).toContain(id);
}

test("asks again for an account that changed, and for no other", async () => {
  await forward();
  await forward();
  expect(fixture.accountReads).toHaveLength(1);
  say(changed({ accountId: "apn_2" }, { projectId: "proj_2" }));
  await heard();
  await forward();
  expect(fixture.accountReads).toHaveLength(1);
  say(changed());
  await heard();
  await forward();
  expect(fixture.accountReads).toHaveLength(2);
  expect(fixture.leases).toHaveLength(2);
});

test("heeds an account service of before, which tells of each account by itself", async () => {
  await forward();
  const account = Account.fromPartial({ id: "apn_1", projectId: "proj_1", state: AccountState.ACTIVE });
  say({ account, changesUse: true, resumeToken: "one" });
  await heard();
  await forward();
  expect(fixture.accountReads).toHaveLength(2);
});

test("keeps what it has when nothing changed that matters to use", async () => {
  await forward();
  say({ account: Account.fromPartial({ id: "apn_1", projectId: "proj_1", name: "new" }), resumeToken: "renamed" });
  say({ resumeToken: "heartbeat" });
  await heard();
  await forward();
  expect(fixture.accountReads).toHaveLength(1);
});

test("breaks off what is in flight for an account that is being revoked, and nothing for one that is shared anew", async () => {
  let answer: ((text: string) => void) | undefined;
  fixture.upstream.answerWith((socket) => {
    answer = (text) => void socket.write(text);
  });
  const shared = forward();
  await expect.poll(() => answer, { timeout: 10_000, interval: 5 }).toBeDefined();
  say(changed());
  await heard();
  answer?.(ok("{}"));
  expect((await shared).status).toBe(200);

  answer = undefined;
  const revoked = forward();
  revoked.catch(() => undefined);
  await expect.poll(() => answer, { timeout: 10_000, interval: 5 }).toBeDefined();
  say(changed({ state: AccountState.REVOKING }));
  await expect(revoked).rejects.toMatchObject({ code: "FAILED_PRECONDITION", reason: "ACCOUNT_REVOKED" });
});

test("begins without a snapshot, and goes on after a loss where it was", async () => {
  expect(opened).toEqual([{ resumeToken: "", changesOnly: true, changesOfUseOnly: true }]);
  say(changed());
  await heard();
  say("cut");
  await expect.poll(() => opened.length, { timeout: 10_000 }).toBe(2);
  expect(opened[1]).toMatchObject({ resumeToken: "heard" });
  await forward();
  await expect
    .poll(() => lines.filter((line) => line.includes("service is watched")).length, { timeout: 10_000 })
    .toBe(2);
  say(changed());
  await heard();
  await forward();
  expect(fixture.accountReads).toHaveLength(2);
});

test("begins anew when what it missed is not kept any more", async () => {
  say({ resumeToken: "old" });
  await heard();
  fault = new StatusError("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED", "Begin without it.");
  say("cut");
  await expect.poll(() => opened.length, { timeout: 5_000 }).toBe(3);
  expect(opened.map(({ resumeToken }) => resumeToken)).toEqual(["", "heard", ""]);
});

test("gives up a stream that is silent for three seconds", async () => {
  const startMs = performance.now();
  await expect.poll(() => opened.length, { timeout: 6_000 }).toBe(2);
  expect(performance.now() - startMs).toBeGreaterThan(2_000);
}, 15_000);

test("serves from hand without the watch, for no longer than the lease", async () => {
  await watch.stop();
  fixture.answers = { account: {}, lease: { leaseDurationMs: 900 } };
  await forward();
  await forward();
  expect(fixture.accountReads).toHaveLength(1);
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  await forward();
  expect(fixture.accountReads).toHaveLength(2);
});
