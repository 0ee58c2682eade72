// A KEK provider over a key service that never gives its keys out: the data key goes there to be wrapped and unwrapped. What
// every such service has in common stands here, what tells them apart in kek-transit.ts, kek-aws.ts and kek-gcp.ts.
//
// Times: 5 s for one answer. A refusal for now (throttled, 5xx, broken connection) is repeated once after a random pause, a
// service that is silent is not: 10 s in all, less than the calls that wait for it have.
//
// Three outcomes of a failure, told apart because they ask for different people:
//   UNAVAILABLE KEK_UNAVAILABLE  the service is away: wait. Data keys in the cache go on working (data-keys.ts).
//   FAILED_PRECONDITION SEALED   it does not let us, or does not have the key: the operator's to put right.
//   DATA_LOSS TAMPERED           it has the key and says that these bytes were not wrapped so: the row was changed.
// The last is said only after the service was asked whether it still has the key. Errors of the clients are thrown away and
// judged beforehand: they can carry the request, and the request of a wrap is the data key.
import { createSecretKey, randomBytes, timingSafeEqual } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { EgressError } from "#libs/egress-error.ts";
import { StatusError } from "#libs/errors.ts";
import type { DataKeyOwner, KekProvider } from "./keyring.ts";

/** How often a ready service is asked to wrap and unwrap for real; between, it is only asked for its keys. */
const probePeriodMs = 60_000;
const probeOwner: DataKeyOwner = { dataKeyId: "dk_probe", accountId: "probe" };
const otherOwner: DataKeyOwner = { dataKeyId: "dk_probe", accountId: "other" };

/** Ids of the KEKs that a service has now, the one to wrap under among them. */
export interface KekIds {
  readonly active: string;
  readonly all: readonly string[];
}

/** A key service. Each call throws a KeyServiceError only, and gives up when the signal says so. */
export interface KeyService {
  list(signal: AbortSignal): Promise<KekIds>;
  /** For an id of the list. */
  encrypt(kekId: string, plaintext: Buffer, owner: DataKeyOwner, signal: AbortSignal): Promise<Buffer>;
  /** For an id of the list; `refused` says that ciphertext, id and owner do not belong together. */
  decrypt(kekId: string, ciphertext: Buffer, owner: DataKeyOwner, signal: AbortSignal): Promise<Buffer>;
}

/**
 * - `unavailable`: no answer, or one that may be another a moment later; `timeout`: silence
 * - `denied`: no right, no such key, a key that is disabled, settings that cannot work
 * - `refused`: the input is not good: for a decryption, that the ciphertext or what it belongs to is another
 */
export type KeyServiceFault = "unavailable" | "timeout" | "denied" | "refused";

/** A key service's failure. The message is for the operator's log; it holds nothing of a request or an answer. */
export class KeyServiceError extends Error {
  readonly kind: KeyServiceFault;

  constructor(kind: KeyServiceFault, message: string) {
    super(message);
    this.name = "KeyServiceError";
    this.kind = kind;
  }
}

/** How long a service is waited for, in milliseconds. */
export interface KeyServiceTimes {
  readonly attemptMs: number;
  readonly totalMs: number;
}

/** What production uses. */
export const keyServiceTimes: KeyServiceTimes = { attemptMs: 5_000, totalMs: 10_000 };

/** The provider over a service; `now` gives milliseconds of a clock that does not go back. */
export function remoteKeks(
  service: KeyService,
  { now, times = keyServiceTimes }: { now(): number; readonly times?: KeyServiceTimes },
): KekProvider {
  let known: KekIds | undefined;
  let probeDueMs = Number.NEGATIVE_INFINITY;
  let bindingSeen = false;

  const ask = <T>(work: (signal: AbortSignal) => Promise<T>) => twice(work, now, times);

  async function list(): Promise<KekIds> {
    known = await ask((signal) => service.list(signal));
    return known;
  }

  /** Asked before anything is sent: else a row could name a key of somebody else's, that the service lets us use. */
  async function has(kekId: string): Promise<boolean> {
    return known?.all.includes(kekId) || (await list()).all.includes(kekId);
  }

  /** That a wrapped key is bound to its owner is not left to trust: a service that does not know the field ignores it. */
  async function probe(kekId: string): Promise<void> {
    const plaintext = randomBytes(32);
    const wrapped = await ask((signal) => service.encrypt(kekId, plaintext, probeOwner, signal));
    const unwrapped = await ask((signal) => service.decrypt(kekId, wrapped, probeOwner, signal));
    if (unwrapped.length !== plaintext.length || !timingSafeEqual(unwrapped, plaintext)) {
      throw new KeyServiceError("denied", "gives back something else than it was given");
    }
    if (bindingSeen) return;
    const bound = await ask((signal) => service.decrypt(kekId, wrapped, otherOwner, signal)).then(
      () => false,
      (error: unknown) => error instanceof KeyServiceError && error.kind === "refused",
    );
    if (!bound) throw new KeyServiceError("denied", "does not bind a wrapped key to what it belongs to");
    bindingSeen = true;
  }

  /** The caller is told the outcome alone; what the service said is the cause, for the log. */
  function fail(cause: unknown): never {
    if (!(cause instanceof KeyServiceError)) throw cause;
    if (cause.kind === "unavailable" || cause.kind === "timeout") {
      const message = "The key service cannot be reached: try again.";
      throw new StatusError("UNAVAILABLE", "KEK_UNAVAILABLE", message, { cause });
    }
    // The next look at the health asks for the real thing.
    probeDueMs = Number.NEGATIVE_INFINITY;
    const message = "The vault is sealed: a key-encryption key is not available.";
    throw new StatusError("FAILED_PRECONDITION", "SEALED", message, { cause });
  }

  async function decrypt(kekId: string, ciphertext: Buffer, owner: DataKeyOwner): Promise<Buffer> {
    if (!(await has(kekId))) throw new KeyServiceError("denied", `has no key ${JSON.stringify(kekId)}`);
    try {
      return await ask((signal) => service.decrypt(kekId, ciphertext, owner, signal));
    } catch (error) {
      if (!(error instanceof KeyServiceError) || error.kind !== "refused") throw error;
      const { all } = await list();
      if (!all.includes(kekId)) throw new KeyServiceError("denied", `has no key ${JSON.stringify(kekId)} any more`);
      const message = "The stored secret, or the row it stands in, was changed after it was sealed.";
      throw new StatusError("DATA_LOSS", "TAMPERED", message);
    }
  }

  return {
    async wrap(dataKey, owner) {
      const plaintext = dataKey.export();
      try {
        const kekId = (known ?? (await list())).active;
        return { kekId, wrappedDataKey: await ask((signal) => service.encrypt(kekId, plaintext, owner, signal)) };
      } catch (error) {
        return fail(error);
      } finally {
        plaintext.fill(0);
      }
    },
    async unwrap({ kekId, wrappedDataKey }, owner) {
      const plaintext = await decrypt(kekId, wrappedDataKey, owner).catch(fail);
      try {
        return createSecretKey(plaintext);
      } finally {
        plaintext.fill(0);
      }
    },
    keyIds: () => list().catch(fail),
    /** Rejects with UNAVAILABLE while the service is away: that says nothing of the keys, and must not seal the vault. */
    async health() {
      try {
        const { active } = await list();
        if (now() >= probeDueMs) {
          await probe(active);
          probeDueMs = now() + probePeriodMs;
        }
        return { kind: "ready" };
      } catch (error) {
        probeDueMs = Number.NEGATIVE_INFINITY;
        if (error instanceof KeyServiceError && (error.kind === "denied" || error.kind === "refused")) {
          return { kind: "sealed", message: `the key service ${error.message}` };
        }
        return fail(error);
      }
    },
  };
}

async function twice<T>(
  work: (signal: AbortSignal) => Promise<T>,
  now: () => number,
  times: KeyServiceTimes,
): Promise<T> {
  const endMs = now() + times.totalMs;
  try {
    return await once(work, times.attemptMs);
  } catch (error) {
    if (!(error instanceof KeyServiceError) || error.kind !== "unavailable") throw error;
    // Spread out, so that processes that were throttled together do not come back together.
    await pause(100 + Math.random() * 200);
    return once(work, Math.max(1, Math.min(times.attemptMs, endMs - now())));
  }
}

/** Not every client heeds the signal, so the wait ends by itself. */
async function once<T>(work: (signal: AbortSignal) => Promise<T>, timeoutMs: number): Promise<T> {
  const stop = new AbortController();
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    late.reject(new KeyServiceError("timeout", `did not answer within ${Math.round(timeoutMs)} ms`));
    stop.abort();
  }, timeoutMs);
  try {
    return await Promise.race([work(stop.signal), late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** The failure of a request that has no answer. */
export function unanswered(error: unknown): KeyServiceError {
  if (!(error instanceof EgressError)) return new KeyServiceError("unavailable", "could not be asked");
  if (error.kind === "denied") return new KeyServiceError("denied", `cannot be asked: ${error.message}`);
  return new KeyServiceError(error.kind === "timeout" ? "timeout" : "unavailable", `did not answer: ${error.message}`);
}
