// Keeps the WatchLeases stream to the vault: what the vault says goes to the holds, and is acknowledged after they have dropped
// what is over.
import { PassThrough } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "#libs/log.ts";
import type { Client } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import {
  type InjectionLease,
  type LeaseInvalidation,
  LeaseInvalidationReason,
  type WatchLeasesRequest,
  type WatchLeasesResponse,
} from "#proto/deputy/vault/v1/leases.ts";
import { keepWatching, streamMs, untilSilent } from "./keep-watching.ts";
import type { LeaseHolds, LeaseNews } from "./lease-holds.ts";

/** What a watch is made of. */
export interface WatchOptions {
  readonly vault: Pick<Client<typeof CredentialVaultDefinition>, "watchLeases">;
  readonly proxyId: string;
  readonly holds: LeaseHolds<InjectionLease>;
  readonly log: Logger;
  /** Told when the watch begins and when it is lost. */
  readonly onChange: (watching: boolean) => void;
}

/** A watch at work. */
export interface LeaseWatch {
  /** Tells the vault that nothing is held any more, and ends. Call it when no request is at work. */
  stop(): Promise<void>;
}

// For a goodbye that has to reach the vault before the connection closes.
const goodbyeMs = 1_000;

type Say = (message: WatchLeasesRequest["message"]) => void;

/** Starts watching, whether the vault is there yet or not. */
export function watchLeases(options: WatchOptions): LeaseWatch {
  const { holds, log, onChange } = options;
  const stopping = new AbortController();
  let say: Say | undefined;

  async function watchOnce(onBegin: () => void): Promise<void> {
    const outgoing = new PassThrough({ objectMode: true });
    const tell: Say = (message) => outgoing.write({ message });
    tell({ $case: "hello", value: { proxyId: options.proxyId, takesBatches: true } });
    const open = (signal: AbortSignal) =>
      options.vault.watchLeases(outgoing, { deadlineMs: Date.now() + streamMs, signal });
    try {
      for await (const { message } of untilSilent(open)) {
        holds.heard();
        if (say === undefined) onBegin();
        say = tell;
        let acknowledged = 0n;
        for (const invalidation of invalidationsIn(message)) {
          const { projectId, accountId, sequence } = invalidation;
          holds.invalidate({ projectId, accountId }, newsOf(invalidation));
          acknowledged = sequence;
        }
        // The vault keeps the highest; a heartbeat is answered so that it knows of this process.
        tell({ $case: "acknowledgedSequence", value: acknowledged });
      }
    } finally {
      say = undefined;
      holds.lost();
      outgoing.end();
    }
  }

  const watching = keepWatching({ name: "the vault", watchOnce, log, stopping: stopping.signal, onChange });
  return {
    async stop() {
      stopping.abort();
      holds.lost();
      if (say === undefined) return;
      say({ $case: "goodbye", value: {} });
      await Promise.race([watching, sleep(goodbyeMs)]);
    },
  };
}

function invalidationsIn(message: WatchLeasesResponse["message"]): readonly LeaseInvalidation[] {
  if (message?.$case === "invalidations") return message.value.invalidations;
  return message?.$case === "invalidation" ? [message.value] : [];
}

/** A refresh without a lease in the place of the old one says that the access token of before works no more. */
function newsOf({ reason, lease }: LeaseInvalidation): LeaseNews<InjectionLease> {
  if (reason === LeaseInvalidationReason.REVOKED) return { kind: "revoked" };
  if (reason === LeaseInvalidationReason.REFRESHED && lease !== undefined) return { kind: "renewed", lease };
  return { kind: "over" };
}
