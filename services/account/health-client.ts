// Reads the vault's changes of credentials for as long as the process runs. Each process does; health.ts sees to it that each
// change is taken over once. What is read, and from where, stands in the database: a process that starts goes on where the
// last one was.
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "#libs/log.ts";
import type { Client } from "#libs/rpc.ts";
import type { CredentialChange } from "#proto/deputy/vault/v1/credential_changes.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import { connectPageOf } from "./expiring-accounts.ts";
import { type CredentialReport, readWatchPlace, takeOverReports } from "./health.ts";
import type { AccountDatabase } from "./schema.ts";

/** What the watch works with. */
export interface HealthWatchOptions {
  readonly db: AccountDatabase;
  readonly vault: Pick<Client<typeof CredentialVaultDefinition>, "listCredentialChanges">;
  readonly gatewayUrl: string;
  readonly log: Logger;
  /** How often the vault is asked while nothing changes. */
  readonly pollMs: number;
}

const pageSize = 500;
const callTimeoutMs = 10_000;
// Somebody holds an account for the length of a statement.
const busyMs = 50;
const outageMs = 5_000;

/** Starts reading. */
export function startHealthWatch(
  { db, vault, gatewayUrl, log, pollMs }: HealthWatchOptions,
  now: () => number,
): { stop(): Promise<void> } {
  const stopping = new AbortController();
  const connectPage = connectPageOf(gatewayUrl);

  /** Gives for how long to rest. */
  async function look(): Promise<number> {
    const from = await readWatchPlace(db);
    const call = { deadlineMs: Date.now() + callTimeoutMs, signal: stopping.signal };
    const { changes, nextPageToken: to } = await vault.listCredentialChanges({ pageToken: from, pageSize }, call);
    if (changes.length === 0 && to === from) return pollMs;
    const reports = changes.map(reportOf);
    const outcome = await takeOverReports(db, { from, to, reports }, { time: new Date(now()), connectPage });
    if (outcome === "busy") return busyMs;
    return changes.length < pageSize ? pollMs : 0;
  }

  async function loop(): Promise<void> {
    let isAway = false;
    while (!stopping.signal.aborted) {
      const restMs = await look().then(
        (ms) => {
          isAway = false;
          return ms;
        },
        (error: unknown) => {
          if (!isAway && !stopping.signal.aborted) log.warn({ err: error }, "the health of accounts cannot be read");
          isAway = true;
          return outageMs;
        },
      );
      await sleep(restMs, undefined, { signal: stopping.signal }).catch(() => undefined);
    }
  }

  const looping = loop();
  return {
    async stop() {
      stopping.abort();
      await looping;
    },
  };
}

const stateNames = ["ACTIVE", "UNKNOWN", "NEEDS_REAUTH", "REVOKED"] as const;

function reportOf({ projectId, credential, failures }: CredentialChange): CredentialReport {
  const { accountId = "", stateReason: reason = "", generation = 0n, state } = credential ?? {};
  return {
    ...{ projectId, accountId, reason, failures, generation: Number(generation) },
    state: stateNames.find((name) => CredentialState[name] === state) ?? "REVOKED",
    expireTime: credential?.expireTime ?? null,
    lastRefreshTime: credential?.lastRefreshTime ?? null,
    nextRefreshTime: credential?.nextRefreshTime ?? null,
    grantExpireTime: credential?.grantExpireTime ?? null,
    grantNoticeTime: credential?.grantNoticeTime ?? null,
  };
}
