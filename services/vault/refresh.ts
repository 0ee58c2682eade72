// The refresh of an access token. With strict rotation a refresh token works once, and a second use makes the provider kill
// the whole grant: one double call loses the account, and a person has to connect again. So:
//
//   JOIN    one attempt per account in this process; whoever comes meanwhile waits for it
//   LOCK    one attempt over all processes: an advisory lock that ends with its process. Busy: try again, and find either the
//           lock free or the row at a newer generation
//   INTENT  short transaction: the row is usable, still at the generation that the caller saw, and no other process sent
//           something in the last 30 s (one may have lost its lock connection while its call goes on)
//   SEND    outside any transaction, detached from every caller: a caller that leaves must not tear a spent grant
//   RECORD  stored iff the row still has that generation and is not destroyed, and repeated until the database answers, which
//           is safe because a stored intent knows itself again. Not there within 100 ms: into the spool too
//   UNLOCK
//
// The lock gives liveness, the generation gives truth: a process that wakes up after any pause finds the generation moved and
// changes nothing. Lost at a crash: before SEND nothing; between the provider's answer and RECORD or spool the new tokens, and
// with strict rotation that one account's grant, never a wrong or a foreign token. Where the provider lets a token be used
// again, within a grace or always, not even that. All times are the database's.
//
// Answer lost, or its process gone with an intent in the row: UNKNOWN. The token is sent again at once where that is allowed;
// with strict rotation the old access token is used to its end, and the refresh tried a minute before.
import { setTimeout as sleep } from "node:timers/promises";
import { newId } from "#libs/ids.ts";
import type { AccountLocks } from "./account-locks.ts";
import { type CredentialKey, findCredential } from "./credentials.ts";
import { type AttemptOptions, attemptRefresh, type RefreshOutcome } from "./refresh-attempt.ts";

/** What a refresher is made of. */
export interface RefreshOptions extends AttemptOptions {
  readonly locks: AccountLocks;
}

/** Refreshes credentials of this process's callers. */
export interface Refresher {
  /** Refreshes unless the row has left `generation`. Never rejects because a caller left; callers stop waiting by themselves. */
  refresh(key: CredentialKey & { readonly generation: bigint }): Promise<RefreshOutcome>;
  /** Resolves when nothing is under way. */
  idle(): Promise<void>;
}

// A provider call and its storing are over by then; a process that is stalled for longer is left to its fence.
const lockWaitMs = 25_000;
const lockPollMs = 100;

/** Makes the process's refresher. */
export function createRefresher(options: RefreshOptions): Refresher {
  const { db, locks } = options;
  const processId = newId("int");
  const underWay = new Map<string, Promise<RefreshOutcome>>();

  async function locked(key: CredentialKey & { readonly generation: bigint }): Promise<RefreshOutcome> {
    const giveUpMs = performance.now() + lockWaitMs;
    while (performance.now() < giveUpMs) {
      const unlock = await locks.tryLock(key);
      if (unlock !== undefined) {
        try {
          const outcome = await attemptRefresh(options, key, processId);
          if (outcome.kind !== "busy") return outcome;
        } finally {
          await unlock();
        }
      }
      await sleep(lockPollMs * (0.5 + Math.random()));
      const row = await findCredential(db, key);
      if (row?.generation !== key.generation) return { kind: "current" };
    }
    return { kind: "busy" };
  }

  return {
    refresh(key) {
      const name = JSON.stringify([key.projectId, key.accountId]);
      const joined = underWay.get(name);
      if (joined !== undefined) return joined;
      const started = locked(key).finally(() => underWay.delete(name));
      underWay.set(name, started);
      return started;
    },
    async idle() {
      await Promise.allSettled(underWay.values());
    },
  };
}
