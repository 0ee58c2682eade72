// Plays a proxy on its WatchLeases stream, with every word of it in the test's hand.
import { PassThrough } from "node:stream";
import type { Client } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { LeaseInvalidation, WatchLeasesRequest } from "#proto/deputy/vault/v1/leases.ts";

/** A stream at work. */
export interface WatchingProxy {
  /** What the vault has told. */
  readonly invalidations: LeaseInvalidation[];
  /** How many accounts each of those messages was about. */
  readonly messageSizes: number[];
  /** Whether invalidations are acknowledged as they come; heartbeats are answered in any case. */
  acknowledging: boolean;
  /** Acknowledges what has come, or any number. */
  acknowledge(sequence?: bigint): void;
  goodbye(): void;
  /** Breaks the stream off without a word. */
  cut(): void;
  /** Why the stream has ended; undefined when it ended well. */
  readonly ended: Promise<unknown>;
}

/** Opens a stream and resolves when the vault has said its first word. */
export async function watchLeasesAs(
  vault: Pick<Client<typeof CredentialVaultDefinition>, "watchLeases">,
  proxyId: string,
  takesBatches = true,
): Promise<WatchingProxy> {
  const outgoing = new PassThrough({ objectMode: true });
  const say = (message: WatchLeasesRequest["message"]) => outgoing.write({ message });
  const cutting = new AbortController();
  const began = Promise.withResolvers<void>();
  let [received, acknowledged] = [0n, 0n];
  const answers = vault.watchLeases(outgoing, { deadlineMs: Date.now() + 600_000, signal: cutting.signal });
  say({ $case: "hello", value: { proxyId, takesBatches } });

  const proxy = {
    invalidations: [] as LeaseInvalidation[],
    messageSizes: [] as number[],
    acknowledging: true,
    acknowledge(sequence = received) {
      acknowledged = sequence;
      say({ $case: "acknowledgedSequence", value: sequence });
    },
    goodbye: () => say({ $case: "goodbye", value: {} }),
    cut: () => cutting.abort(),
    ended: listen().then(
      () => undefined,
      (error: unknown) => error,
    ),
  };

  async function listen(): Promise<void> {
    for await (const { message } of answers) {
      began.resolve();
      if (message?.$case === "heartbeat") say({ $case: "acknowledgedSequence", value: acknowledged });
      if (message?.$case !== "invalidation" && message?.$case !== "invalidations") continue;
      const told = message.$case === "invalidation" ? [message.value] : message.value.invalidations;
      received = told.at(-1)?.sequence ?? received;
      proxy.invalidations.push(...told);
      proxy.messageSizes.push(told.length);
      if (proxy.acknowledging) proxy.acknowledge();
    }
  }

  proxy.ended.then((error) => began.reject(error));
  await began.promise;
  return proxy;
}
