// WatchAccounts: a snapshot of all accounts, page by page, then what has changed since it began, then each change as it is
// committed, by whatever process. The place in the list of changes is taken before the first page is read: so nothing falls between
// the two, and what changes during the snapshot comes twice at the worst. Each message carries what to send to go on after it,
// in the middle of the snapshot too. Nothing is read ahead: a batch is read when the one before it has been taken, so that a slow
// reader costs a batch of memory and no more. A notification that was lost costs a heartbeat's time.

import type { Signals } from "#libs/database-signals.ts";
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import { Account, AccountState } from "#proto/deputy/account/v1/accounts.ts";
import type { WatchAccountsRequest, WatchAccountsResponse } from "#proto/deputy/account/v1/events.ts";
import { type AccountChange, accountsOf, presentPlace, readChanges, statesOf } from "./account-changes.ts";
import { type AccountKey, listAccountsByKey } from "./accounts.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { accountMessage } from "./messages.ts";
import { readResumeToken, writeResumeToken } from "./resume-tokens.ts";
import type { AccountDatabase, AccountRow } from "./schema.ts";

/** Where account processes hear of changes. */
export type AccountSignals = Pick<Signals<"account_changes">, "count" | "next" | "stopping">;

interface Collaborators {
  readonly db: AccountDatabase;
  readonly signals: AccountSignals;
}

const heartbeatMs = 1_000;
const pageSize = 500;
const beforeAll: AccountKey = { projectId: "", id: "" };

export function watchAccountsHandler(collaborators: Collaborators): HandlerGroup<"watchAccounts"> {
  return { watchAccounts: (request, call) => watchAccounts(collaborators, request, call) };
}

async function* watchAccounts(
  { db, signals }: Collaborators,
  request: WatchAccountsRequest,
  call: Call,
): AsyncGenerator<WatchAccountsResponse> {
  if (signals.stopping.aborted) throw new StatusError("UNAVAILABLE", "STOPPING", "This account process is stopping.");
  const { place, snapshotAfter } = await beginning(db, request);
  for (let after = snapshotAfter; after !== undefined; ) {
    const accounts = await listAccountsByKey(db, after, pageSize);
    for (const account of accounts) {
      const resumeToken = writeResumeToken({ place, snapshotAfter: account });
      yield { ...nothing, account: accountMessage(account), resumeToken, changesUse: true };
    }
    after = accounts.length < pageSize ? undefined : accounts.at(-1);
  }
  const reader = readChanges(db, place);
  const messagesOf = request.changesOfUseOnly ? useMessages : accountMessages;
  const isOver = () => call.signal.aborted || signals.stopping.aborted;
  // The first look comes before the first heartbeat: a place that is of no use is refused at once.
  for (let dueMs = performance.now(); !isOver(); dueMs = performance.now() + heartbeatMs) {
    for (let leftMs = 1; leftMs > 0 && !isOver(); ) {
      const seen = signals.count("account_changes");
      const before = writeResumeToken({ place: reader.place });
      const { changes, more } = await reader.read();
      yield* messagesOf(db, changes, { before, after: writeResumeToken({ place: reader.place }) });
      leftMs = dueMs - performance.now();
      if (leftMs > 0 && !more) await signals.next("account_changes", seen, leftMs, call.signal);
    }
    yield { ...nothing, resumeToken: writeResumeToken({ place: reader.place }) };
  }
}

/** Where a stream begins, and after which account its snapshot does, if there is one. */
async function beginning(db: AccountDatabase, { resumeToken, changesOnly }: WatchAccountsRequest) {
  if (resumeToken !== "") return readResumeToken(resumeToken);
  return { place: await presentPlace(db), snapshotAfter: changesOnly ? undefined : beforeAll };
}

interface ResumeTokens {
  readonly before: string;
  readonly after: string;
}

const nothing = { account: undefined, changesUse: false, useChanges: [] };

/** Each change by itself; who goes on in the middle of them is told all of them again. */
async function* accountMessages(
  db: AccountDatabase,
  changes: readonly AccountChange[],
  { before, after }: ResumeTokens,
): AsyncGenerator<WatchAccountsResponse> {
  const accounts = await accountsOf(db, changes);
  for (const [index, change] of changes.entries()) {
    const resumeToken = index === changes.length - 1 ? after : before;
    const account = changedAccount(change, accounts[index]);
    yield { ...nothing, account, resumeToken, changesUse: change.changesUse };
  }
}

/** Those that matter to use, in one message. */
async function* useMessages(
  db: AccountDatabase,
  changes: readonly AccountChange[],
  { after }: ResumeTokens,
): AsyncGenerator<WatchAccountsResponse> {
  const ofUse = changes.filter(({ changesUse }) => changesUse);
  const states = await statesOf(db, ofUse);
  if (ofUse.length === 0) return;
  const useChanges = ofUse.map(({ projectId, accountId }, index) => {
    return { projectId, accountId, state: AccountState[states[index] ?? "REVOKED"] };
  });
  yield { ...nothing, resumeToken: after, changesUse: true, useChanges };
}

function changedAccount(
  { projectId, accountId, environment }: AccountChange,
  account: AccountRow | undefined,
): Account {
  if (account !== undefined) return accountMessage(account);
  return Account.fromPartial({ id: accountId, projectId, environment, state: AccountState.REVOKED });
}
