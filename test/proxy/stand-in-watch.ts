// The vault's side of WatchLeases, with every word of it in the test's hand.
import type { InjectionLease, WatchLeasesRequest, WatchLeasesResponse } from "#proto/deputy/vault/v1/leases.ts";
import { LeaseInvalidationReason } from "#proto/deputy/vault/v1/leases.ts";

/** What a test sees and decides. */
export interface StandInWatch {
  /** What the proxy has said, heartbeats' answers included. */
  readonly heard: WatchLeasesRequest["message"][];
  /** Streams that were opened. */
  opened: number;
  /** False: the streams stay open and say nothing. */
  talking: boolean;
  /** False: a new stream gets no word. */
  open: boolean;
  /** Holds the answers to LeaseInjection. */
  leasing: Promise<void> | undefined;
  /** Holds new connections to the upstream. */
  connecting: Promise<void> | undefined;
  /** Ends the leases of an account. Resolves when the proxy has acknowledged. */
  invalidate(accountId: string, reason?: LeaseInvalidationReason, lease?: InjectionLease): Promise<void>;
  /** Breaks all streams. */
  cut(): void;
  say: Set<(answer: WatchLeasesResponse["message"] | "cut") => void>;
}

export function newStandInWatch(): StandInWatch {
  let sequence = 0n;
  return {
    heard: [],
    opened: 0,
    talking: true,
    open: true,
    leasing: undefined,
    connecting: undefined,
    say: new Set(),
    async invalidate(accountId, reason = LeaseInvalidationReason.REVOKED, lease) {
      sequence += 1n;
      const value = { sequence, projectId: "proj_1", accountId, reason, lease };
      for (const say of this.say) say({ $case: "invalidation", value });
      const isHeard = () =>
        this.heard.some((message) => message?.$case === "acknowledgedSequence" && message.value === sequence);
      while (!isHeard()) await new Promise((resolve) => setTimeout(resolve, 5));
    },
    cut() {
      for (const say of this.say) say("cut");
    },
  };
}

/** Serves one stream. */
export async function* standInWatch(
  watch: StandInWatch,
  requests: AsyncIterable<WatchLeasesRequest>,
): AsyncGenerator<WatchLeasesResponse> {
  watch.opened += 1;
  if (!watch.open) throw new Error("the vault is away");
  (async () => {
    for await (const { message } of requests) watch.heard.push(message);
  })().catch(() => undefined);
  const answers: (WatchLeasesResponse["message"] | "cut")[] = [];
  let wake = () => {};
  const say = (answer: WatchLeasesResponse["message"] | "cut") => {
    answers.push(answer);
    wake();
  };
  const beat = () => {
    if (watch.talking) say({ $case: "heartbeat", value: { time: new Date() } });
  };
  watch.say.add(say);
  const timer = setInterval(beat, 500);
  beat();
  try {
    for (;;) {
      for (const message of answers.splice(0)) {
        if (message === "cut") return;
        yield { message };
      }
      await new Promise<void>((resolve) => {
        wake = resolve;
        if (answers.length > 0) resolve();
      });
    }
  } finally {
    clearInterval(timer);
    watch.say.delete(say);
  }
}
