// Which leases this process gave a moment ago, and to which proxy: who is to be told when a credential is refreshed. In memory,
// because it spares work and decides nothing: what is forgotten is only not told.
import type { CredentialKey } from "./credentials.ts";
import { leaseMs } from "./lease-watchers.ts";

/** The grants of one process. */
export interface LeaseGrants {
  /** Call it before the credential is read, so that no refresh falls in between. */
  note(proxyId: string, account: CredentialKey): void;
  /** Whether the proxy may still hold a lease that was given here. */
  has(proxyId: string, account: CredentialKey): boolean;
}

// Ten thousand leases a second; about 20 MB.
const mostGrants = 100_000;

/** Makes them; the clock gives milliseconds that only go forward. */
export function leaseGrants(nowMs: () => number): LeaseGrants {
  // In the order of their times: the first ones are over first.
  const times = new Map<string, number>();
  const isOver = (timeMs: number) => nowMs() - timeMs >= leaseMs;

  function forgetOld(): void {
    for (const [name, timeMs] of times) {
      if (times.size <= mostGrants && !isOver(timeMs)) return;
      times.delete(name);
    }
  }

  return {
    note(proxyId, account) {
      const name = nameOf(proxyId, account);
      times.delete(name);
      times.set(name, nowMs());
      forgetOld();
    },
    has(proxyId, account) {
      const timeMs = times.get(nameOf(proxyId, account));
      return timeMs !== undefined && !isOver(timeMs);
    },
  };
}

function nameOf(proxyId: string, { projectId, accountId }: CredentialKey): string {
  return JSON.stringify([proxyId, projectId, accountId]);
}
