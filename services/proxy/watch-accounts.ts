// Keeps the WatchAccounts stream to the account service: when an account changes in a way that matters to those who use it (its
// state, its owner, with whom it is shared), its leases in hand are dropped, and the next request asks anew whether it may. So
// this process's view is right a moment after the change; what is in flight goes on, unless the account is being revoked.
//
// It is the quick way and not the safe one. When the stream is lost nothing is dropped and requests go on: a lease lasts ten
// seconds at most and is never renewed without asking the account service again, so no view is older than that, watched or not.
// (That nothing starts with a destroyed credential is promised by the vault's watch, watch-leases.ts, and needs none of this.) What
// changed in between is told when the stream is back, from the resume token on; should that be of no use any more, everything
// it could tell of is older than any lease. Accounts that are not in hand are none of this process's business: it asks for no
// snapshot and keeps none.
import { StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import type { Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { AccountState } from "#proto/deputy/account/v1/accounts.ts";
import type { WatchAccountsResponse } from "#proto/deputy/account/v1/events.ts";
import { keepWatching, streamMs, untilSilent } from "./keep-watching.ts";
import type { LeaseHolds } from "./lease-holds.ts";

/** What a watch is made of. */
export interface AccountWatchOptions {
  readonly account: Pick<Client<typeof AccountServiceDefinition>, "watchAccounts">;
  readonly holds: Pick<LeaseHolds<never>, "invalidate">;
  readonly log: Logger;
}

/** Starts watching, whether the account service is there yet or not. */
export function watchAccounts({ account, holds, log }: AccountWatchOptions): { stop(): Promise<void> } {
  const stopping = new AbortController();
  let resumeToken = "";

  async function watchOnce(onBegin: () => void): Promise<void> {
    let isFirst = true;
    const open = (silence: AbortSignal) => {
      const signal = AbortSignal.any([silence, stopping.signal]);
      const options = { deadlineMs: Date.now() + streamMs, signal };
      return account.watchAccounts({ resumeToken, changesOnly: true, changesOfUseOnly: true }, options);
    };
    for await (const message of untilSilent(open)) {
      if (isFirst) onBegin();
      isFirst = false;
      ({ resumeToken } = message);
      for (const { projectId, accountId, state } of useChangesIn(message)) {
        holds.invalidate({ projectId, accountId }, { kind: state === AccountState.ACTIVE ? "over" : "revoked" });
      }
    }
  }

  const watching = keepWatching({
    name: "the account service",
    watchOnce: async (onBegin) => {
      await watchOnce(onBegin).catch((error: unknown) => {
        if (error instanceof StatusError && error.reason === "RESUME_TOKEN_EXPIRED") resumeToken = "";
        throw error;
      });
    },
    log,
    stopping: stopping.signal,
  });
  return {
    async stop() {
      stopping.abort();
      await watching;
    },
  };
}

/** An account service of before tells of each account by itself. */
function useChangesIn({ account, changesUse, useChanges }: WatchAccountsResponse) {
  if (account === undefined || !changesUse) return useChanges;
  return [{ projectId: account.projectId, accountId: account.id, state: account.state }];
}
