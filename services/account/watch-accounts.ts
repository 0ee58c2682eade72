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
import { type AccountChange, presentPlace, readChanges } from "./account-changes.ts";
import { type AccountKey, listAccountsByKey } from "./accounts.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { accountMessage } from "./messages.ts";
import { readResumeToken, writeResumeToken } from "./resume-tokens.ts";
import type { AccountDatabase } from "./schema.ts";

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
      yield { account: accountMessage(account), resumeToken, changesUse: true };
    }
    after = accounts.length < pageSize ? undefined : accounts.at(-1);
  }
  const reader = readChanges(db, place);
  const isOver = () => call.signal.aborted || signals.stopping.aborted;
  while (!isOver()) {
    yield { account: undefined, resumeToken: writeResumeToken({ place: reader.place }), changesUse: false };
    const dueMs = performance.now() + heartbeatMs;
    for (let leftMs = heartbeatMs; leftMs > 0 && !isOver(); leftMs = dueMs - performance.now()) {
      const seen = signals.count("account_changes");
      const before = writeResumeToken({ place: reader.place });
      const { changes, more } = await reader.read();
      const after = writeResumeToken({ place: reader.place });
      for (const [index, change] of changes.entries()) {
        const resumeToken = index === changes.length - 1 ? after : before;
        yield { account: changedAccount(change), resumeToken, changesUse: change.changesUse };
      }
      if (!more) await signals.next("account_changes", seen, leftMs, call.signal);
    }
  }
}

/** Where a stream begins, and after which account its snapshot does, if there is one. */
async function beginning(db: AccountDatabase, { resumeToken, changesOnly }: WatchAccountsRequest) {
  if (resumeToken !== "") return readResumeToken(resumeToken);
  return { place: await presentPlace(db), snapshotAfter: changesOnly ? undefined : beforeAll };
}

function changedAccount({ account, projectId, accountId, environment }: AccountChange): Account {
  if (account !== undefined) return accountMessage(account);
  return Account.fromPartial({ id: accountId, projectId, environment, state: AccountState.REVOKED });
}
