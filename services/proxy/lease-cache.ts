// The leases that this process has in hand, so that a request for an account in use asks nobody: no lock, no database, no call.
//
// An entry is a lease with its hold (lease-holds.ts). It is good for as long as the hold says so, and no longer: a revocation,
// an account connected anew, a watch that is lost and a lease that has run out all void the hold, so that the cache has nothing
// to be told and nothing to forget. It adds no time to a lease and no way to start a request that the hold would not allow.
//
// Who may use an entry. The vault and the account service judged the token of the caller who asked first; whoever comes later
// is let in by this process. That gives no right away. What their answers depend on is the project, the environment, the user,
// the account and the member on whose behalf a caller acts: all of it is the key. What is left of a token, its signature, its
// time and its scope, this process checks for every request, by the same code and the same keys. And the vault's own look at a
// token guards against a proxy that is not to be trusted with more than the requests it was given; with this one lease such a
// proxy can do what it likes in any case. A member's right that is taken away ends with the leases there are, ten seconds at most.
//
// One question for many: who asks while an answer is on its way waits for that one, each within its own deadline. The question
// itself runs under none of theirs, for its answer is not theirs alone. A request in the last third of a lease's life has the
// next one fetched, with its own token, and does not wait: an account in use never waits again, one out of use simply ends.
// A renewal that fails is not repeated: when the lease ends, the next request asks, and is told. A refusal is not kept. It is
// the rare case, one question at a time per key bounds it, and kept ones would outlive what they say: an account made a moment ago.
import { StatusError } from "#libs/errors.ts";
import { type Patience, within } from "#libs/patience.ts";
import type { Leasable, LeaseHold, LeaseHolds } from "./lease-holds.ts";

/** Everything that the right to a lease depends on. */
export interface LeaseKey {
  readonly projectId: string;
  readonly environment: number;
  readonly externalUserId: string;
  readonly accountId: string;
  readonly actor: { readonly memberId: string; readonly role: string } | undefined;
}

/** Asks for a lease, for as long as it may be wanted. Nobody waits for a renewal. */
export type AskForLease<Lease> = (question: Required<Patience> & { readonly isRenewal: boolean }) => Promise<Lease>;

/** A lease in a request's hands, and the right to use it. */
export interface BorrowedLease<Lease extends Leasable> {
  readonly lease: Lease;
  readonly hold: LeaseHold<Lease>;
  /** Whether this request waited for it. */
  readonly isNew: boolean;
  /** Call it when nothing is in flight with it any more. */
  giveBack(): void;
}

/** The leases in hand. */
export interface LeaseCache<Lease extends Leasable> {
  /** From memory, or else by asking. Throws what the asking threw. */
  borrow(key: LeaseKey, patience: Patience, ask: AskForLease<Lease>): Promise<BorrowedLease<Lease>>;
}

interface Granted<Lease extends Leasable> {
  readonly lease: Lease;
  readonly hold: LeaseHold<Lease>;
  readonly renewMs: number;
}

interface Entry<Lease extends Leasable> {
  readonly asking: Promise<Granted<Lease>>;
  granted: Granted<Lease> | undefined;
  isRenewed: boolean;
  /** The hold has to be there until the last request is done, cached or not: a revocation breaks off what is in flight. */
  users: number;
}

// As long as the longest request, and time for a refresh on the way.
const askTimeoutMs = 30_000;
const renewalShare = 2 / 3;

/** Makes an empty cache. Beyond `maxEntries` the one that was used longest ago goes. */
export function leaseCache<Lease extends Leasable>(
  holds: Pick<LeaseHolds<Lease>, "take">,
  now: () => number,
  maxEntries = 10_000,
): LeaseCache<Lease> {
  // In order of use: a map keeps the order in which keys were put.
  const entries = new Map<string, Entry<Lease>>();

  async function fill(key: LeaseKey, ask: AskForLease<Lease>, isRenewal: boolean): Promise<Granted<Lease>> {
    const deadlineMs = now() + askTimeoutMs;
    const hold = await holds.take(key, deadlineMs);
    try {
      const lease = await ask({ deadlineMs, signal: hold.signal, isRenewal });
      hold.grant(lease.leaseDurationMs);
      return { lease, hold, renewMs: now() + lease.leaseDurationMs * renewalShare };
    } catch (error) {
      hold.end();
      throw hold.signal.aborted ? hold.signal.reason : error;
    }
  }

  function begin(name: string, key: LeaseKey, ask: AskForLease<Lease>, isRenewal = false): Entry<Lease> {
    const entry: Entry<Lease> = { asking: fill(key, ask, isRenewal), granted: undefined, isRenewed: false, users: 1 };
    entry.asking.then(
      (granted) => {
        entry.granted = granted;
        if (entry.users === 0) granted.hold.end();
        // So that a secret is not in memory for longer than it is good for.
        else setTimeout(() => drop(name, entry), granted.lease.leaseDurationMs).unref();
      },
      () => drop(name, entry),
    );
    return entry;
  }

  function renew(name: string, key: LeaseKey, entry: Entry<Lease>, ask: AskForLease<Lease>): void {
    entry.isRenewed = true;
    const next = begin(name, key, ask, true);
    next.asking.then(
      () => (entries.get(name) === entry ? keep(name, next) : release(next)),
      () => undefined,
    );
  }

  function keep(name: string, entry: Entry<Lease>): void {
    const before = entries.get(name);
    if (before !== undefined) drop(name, before);
    entries.set(name, entry);
    const [oldest] = entries;
    if (entries.size > maxEntries && oldest !== undefined) drop(...oldest);
  }

  function drop(name: string, entry: Entry<Lease>): void {
    if (entries.get(name) !== entry) return;
    entries.delete(name);
    release(entry);
  }

  function release(entry: Entry<Lease>): void {
    entry.users -= 1;
    if (entry.users === 0) entry.granted?.hold.end();
  }

  /** The entry that is there and not over, else a new one. */
  function enter(name: string, key: LeaseKey, ask: AskForLease<Lease>): { entry: Entry<Lease>; isAsker: boolean } {
    const known = entries.get(name);
    if (known === undefined || known.granted?.hold.fault() !== undefined) {
      const entry = begin(name, key, ask);
      keep(name, entry);
      return { entry, isAsker: true };
    }
    entries.delete(name);
    entries.set(name, known);
    if (!known.isRenewed && known.granted !== undefined && now() >= known.granted.renewMs) renew(name, key, known, ask);
    return { entry: known, isAsker: false };
  }

  return {
    async borrow(key, patience, ask) {
      const name = nameOf(key);
      const { entry, isAsker } = enter(name, key, ask);
      const isNew = entry.granted === undefined;
      entry.users += 1;
      try {
        const { lease, hold } = entry.granted ?? (await within(entry.asking, patience));
        return { lease, hold, isNew, giveBack: () => release(entry) };
      } catch (error) {
        release(entry);
        // Somebody else's token has ended, not this caller's.
        const isTheirs = !isAsker && error instanceof StatusError && error.code === "UNAUTHENTICATED";
        if (isTheirs) return this.borrow(key, patience, ask);
        throw error;
      }
    },
  };
}

function nameOf({ projectId, environment, externalUserId, accountId, actor }: LeaseKey): string {
  return JSON.stringify([projectId, environment, externalUserId, accountId, actor?.memberId, actor?.role]);
}
