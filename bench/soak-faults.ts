// What is done to the stack during the soak, one after the other, and what each may cause. A call may end in any other way than
// well only with a reason that a fault allows which was there while the call was at work. Whether a fault was felt at all is
// counted, too: one that nobody feels tests nothing.
import { setTimeout as sleep } from "node:timers/promises";
import type { Ended } from "./soak-load.ts";

/** One fault. */
export interface Fault {
  readonly name: string;
  /** The ends that it may cause, beside a good one, by their reason. */
  readonly allows: readonly string[];
  /** By what it has to be felt in some call, once at least. */
  readonly shows?: "failure" | "refresh";
  /** How long after its end calls may still feel it. */
  readonly recoveryMs: number;
  /** Does it, and undoes it. Gives the account that alone may feel it, if it is for one. */
  run(mark: (accountId: string) => void): Promise<void>;
}

interface Window {
  readonly fault: Fault;
  readonly fromMs: number;
  toMs: number;
  accountId: string | undefined;
  failures: number;
  refreshes: number;
}

/** An end that no fault explains. */
export interface Unexpected extends Ended {
  readonly time: string;
}

/** Keeps the faults' times, and judges calls by them. */
export function startJudge() {
  const windows: Window[] = [];
  const unexpected: Unexpected[] = [];
  const counts = new Map<string, number>();
  const latenciesMs: number[] = [];
  /** When an account's revocation was answered. */
  const revoked = new Map<string, number>();

  function judge(ended: Ended): void {
    const around = windows.filter(({ fromMs, toMs, accountId }) => {
      const isForAnother = accountId !== undefined && accountId !== ended.accountId;
      return !isForAnother && fromMs <= ended.endMs && toMs >= ended.startMs;
    });
    const isLate = ended.startMs > (revoked.get(ended.accountId) ?? Number.POSITIVE_INFINITY);
    const isWell = ended.result === "OK" && (!isLate || ended.kind === "leave");
    const cause = around.find(({ fault }) => fault.allows.includes(ended.result));
    if (ended.refreshed) for (const window of around) window.refreshes += 1;
    if (cause !== undefined) cause.failures += 1;
    count(isWell ? "OK" : `${ended.result} (${cause?.fault.name ?? "UNEXPECTED"})`);
    if (isWell && around.length === 0 && !ended.kind.startsWith("leave")) {
      latenciesMs.push(ended.endMs - ended.startMs);
    }
    if (isWell || cause !== undefined) return;
    unexpected.push({ ...ended, time: new Date().toISOString() });
    if (unexpected.length <= 20) console.error("UNEXPECTED", unexpected.at(-1));
  }

  function count(what: string): void {
    counts.set(what, (counts.get(what) ?? 0) + 1);
  }

  /** Runs one fault, and says how many calls have felt it. */
  async function inflict(fault: Fault): Promise<void> {
    const window: Window = {
      ...{ fault, fromMs: performance.now(), failures: 0, refreshes: 0 },
      ...{ toMs: Number.POSITIVE_INFINITY, accountId: undefined },
    };
    windows.push(window);
    await fault.run((accountId) => {
      window.accountId = accountId;
    });
    const lastedMs = Math.round(performance.now() - window.fromMs);
    window.toMs = performance.now() + fault.recoveryMs;
    await sleep(fault.recoveryMs);
    const { failures, refreshes } = window;
    console.log(
      `${new Date().toISOString()} ${fault.name}: ${lastedMs} ms, ${failures} calls failed, ${refreshes} had a refresh`,
    );
  }

  return {
    judge,
    inflict,
    /** How many faults there were so far. */
    faults: () => windows.length,
    /** Those that no call has felt as it had to. */
    unfelt: (faults: readonly Fault[]) =>
      faults.filter(({ name, shows }) => {
        const own = windows.filter(({ fault }) => fault.name === name);
        const felt = {
          failure: own.some(({ failures }) => failures > 0),
          refresh: own.some(({ refreshes }) => refreshes > 0),
        };
        return shows !== undefined && !felt[shows];
      }),
    unexpected: unexpected as readonly Unexpected[],
    counts: counts as ReadonlyMap<string, number>,
    latenciesMs: latenciesMs as readonly number[],
    /** From now on nothing may be sent for this account. */
    answeredRevocation: (accountId: string) => revoked.set(accountId, performance.now()),
  };
}
