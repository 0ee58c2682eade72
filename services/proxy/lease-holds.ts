// What this process may still send with which lease. A hold is taken before a lease is asked for, and looked at once more in
// the moment before a request's first byte leaves: then the watch must have been alive all the time since, nobody may have
// ended the account's leases, and the lease's time, counted from before it was asked for, must not be over. The time is taken
// from two clocks of this machine, and the one on which more has passed counts: the monotonic one, which nobody can set, and
// the wall clock, which also goes on while a machine is suspended. See the argument in the vault's lease-watchers.ts.
//
// After a refresh the vault may give the new material for leases that are held. It takes the place of the old one under the same
// hold: whoever asked stays who asked, and the time still counts from before that, so that nothing lives longer for it, however
// late it comes.
//
// The cache of leases sits on this: an entry is a lease with its hold, good for as long as `fault` says nothing; what is sent
// with it is its `newest`.
import { setTimeout as sleep } from "node:timers/promises";
import { StatusError } from "#libs/errors.ts";

/** An account that leases are for. */
export interface LeaseAccount {
  readonly projectId: string;
  readonly accountId: string;
}

/** A lease as holds know it: of which generation of the credential, and how long it lasts. */
export interface Leasable {
  readonly generation: bigint;
  readonly leaseDurationMs: number;
}

/** What the vault says of an account's leases. */
export type LeaseNews<Lease extends Leasable> =
  /** The account is revoked: what is in flight is broken off. */
  | { readonly kind: "revoked" }
  /** Nothing may be started with them any more. */
  | { readonly kind: "over" }
  /** The credential was refreshed, and this takes their place: nothing is broken off. */
  | { readonly kind: "renewed"; readonly lease: Lease };

/** The right to use one lease, from before it is asked for. */
export interface LeaseHold<Lease extends Leasable = Leasable> {
  /** Fires when the account is revoked, with the error for the caller: what is in flight has to be broken off. */
  readonly signal: AbortSignal;
  /** Tells how long the lease lasts. Until then it cannot be used. */
  grant(durationMs: number): void;
  /** Why nothing may be sent with it now; undefined when something may. */
  fault(): StatusError | undefined;
  /** What it is for is of no more use, though nobody has ended it: from now on this is its fault. */
  discard(fault: StatusError): void;
  /** The lease that was given for this hold, or what has taken its place: the same object while nothing has. */
  newest(lease: Lease): Lease;
  end(): void;
}

/** The holds of this process. */
export interface LeaseHolds<Lease extends Leasable = Leasable> {
  /** Takes a hold; waits a little for the watch to begin. UNAVAILABLE `VAULT_UNREACHABLE` when it does not. */
  take(account: LeaseAccount, deadlineMs: number): Promise<LeaseHold<Lease>>;
  /** The vault was heard: the first time on a stream, the watch begins. */
  heard(): void;
  /** The stream is gone: all holds are void. */
  lost(): void;
  /** The account's leases are not to be used any more: all its holds are void, or go on with another lease. */
  invalidate(account: LeaseAccount, news: LeaseNews<Lease>): void;
}

/** The clocks: milliseconds that only go forward, and milliseconds since 1970. */
export interface Clocks {
  readonly monotonicMs: () => number;
  readonly wallMs: () => number;
}

/** Three heartbeats of the vault: one that is silent for longer may have something to tell that does not arrive. */
export const silenceMs = 3_000;

// A stream that broke is back within this, or the vault is away.
const watchWaitMs = 3_000;
const watchPollMs = 25;

interface Held<Lease> {
  voidedBy: StatusError | undefined;
  renewal: { readonly lease: Lease; readonly untilMs: number } | undefined;
  readonly ageMs: () => number;
  readonly abort: AbortController;
}

/** Makes the holds of a process; none can be taken before the vault is heard. */
export function leaseHolds<Lease extends Leasable>(clocks: Clocks): LeaseHolds<Lease> {
  const held = new Map<string, Set<Held<Lease>>>();
  let lastHeard: (() => number) | undefined;

  /** How long ago something was. */
  function stopwatch(): () => number {
    const [monotonic, wall] = [clocks.monotonicMs(), clocks.wallMs()];
    return () => Math.max(clocks.monotonicMs() - monotonic, clocks.wallMs() - wall);
  }

  const isWatching = () => lastHeard !== undefined && lastHeard() <= silenceMs;

  function voidAll(): void {
    for (const holds of held.values()) for (const hold of holds) hold.voidedBy ??= unreachable();
  }

  function add(account: LeaseAccount): LeaseHold<Lease> {
    const key = JSON.stringify([account.projectId, account.accountId]);
    const ageMs = stopwatch();
    const own: Held<Lease> = { voidedBy: undefined, renewal: undefined, ageMs, abort: new AbortController() };
    const ofAccount = held.get(key) ?? new Set();
    held.set(key, ofAccount.add(own));
    let durationMs = 0;
    return {
      signal: own.abort.signal,
      grant(ms) {
        durationMs = ms;
      },
      fault() {
        if (own.voidedBy !== undefined) return own.voidedBy;
        if (!isWatching()) return unreachable();
        return ageMs() < Math.min(durationMs, own.renewal?.untilMs ?? durationMs) ? undefined : leaseOver();
      },
      discard(fault) {
        own.voidedBy ??= fault;
      },
      newest: (lease) =>
        own.renewal !== undefined && own.renewal.lease.generation > lease.generation ? own.renewal.lease : lease,
      end() {
        ofAccount.delete(own);
        if (ofAccount.size === 0 && held.get(key) === ofAccount) held.delete(key);
      },
    };
  }

  return {
    async take(account, deadlineMs) {
      const giveUpMs = Math.min(deadlineMs, clocks.wallMs() + watchWaitMs);
      while (!isWatching()) {
        if (clocks.wallMs() >= giveUpMs) throw unreachable();
        await sleep(watchPollMs);
      }
      return add(account);
    },
    heard() {
      // After a silence the vault may no longer have counted on this process.
      if (!isWatching()) voidAll();
      lastHeard = stopwatch();
    },
    lost() {
      lastHeard = undefined;
      voidAll();
    },
    invalidate({ projectId, accountId }, news) {
      for (const hold of held.get(JSON.stringify([projectId, accountId])) ?? []) {
        if (news.kind === "renewed") renew(hold, news.lease);
        else hold.voidedBy = news.kind === "revoked" ? accountRevoked() : leaseOver();
        if (news.kind === "revoked") hold.abort.abort(hold.voidedBy);
      }
    },
  };
}

function renew<Lease extends Leasable>(hold: Held<Lease>, lease: Lease): void {
  if (hold.renewal !== undefined && hold.renewal.lease.generation >= lease.generation) return;
  hold.renewal = { lease, untilMs: hold.ageMs() + lease.leaseDurationMs };
}

function unreachable(): StatusError {
  return new StatusError("UNAVAILABLE", "VAULT_UNREACHABLE", "The vault cannot be reached now: send it again.");
}

function accountRevoked(): StatusError {
  return new StatusError("FAILED_PRECONDITION", "ACCOUNT_REVOKED", "The account is revoked: connect it anew.");
}

/** What is said of a request whose lease ended before its first byte had left. */
export function leaseOver(): StatusError {
  return new StatusError("UNAVAILABLE", "LEASE_EXPIRED", "The lease ended before the request was sent: send it again.");
}
