// Refreshes credentials before their tokens end, so that no caller ever waits for one. Every process runs the loop; rows are
// shared by claiming them. A provider has a lane of its own: so many requests under way to one token endpoint, so many a
// minute where the app says so, and what does not fit stays in the database, where it is in nobody's way. A row that cannot
// be worked on is left alone after some tries. Everything else (locks, intents, pauses) is the refresh's own: refresh.ts.
import { setTimeout as sleep } from "node:timers/promises";
import type { Catalog } from "#libs/catalog.ts";
import { type StatusCode, StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import { ownAppLanes } from "./own-app-lanes.ts";
import type { Refresher } from "./refresh.ts";
import { type AppRoom, type Claim, claimDue, noteFault } from "./refresh-claims.ts";
import { catalogLanes, type Lanes, shuffled } from "./refresh-lanes.ts";
import type { VaultDatabase } from "./schema.ts";

/** What the loop is made of. */
export interface RefreshLoopOptions {
  readonly db: VaultDatabase;
  readonly catalog: Catalog;
  readonly refresher: Refresher;
  readonly log: Logger;
  /** While it gives false nothing is claimed: a sealed vault can refresh nothing. */
  readonly isOpen: () => boolean;
  readonly pollMs?: number;
  /** How often own apps are looked through for what is due. */
  readonly ownAppsMs?: number;
}

/** A loop at work. */
export interface RefreshLoop {
  /** Claims nothing more, and resolves when what is under way has ended. */
  stop(): Promise<void>;
}

const outages: readonly StatusCode[] = ["UNAVAILABLE", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED"];

const mostInFlight = 64;
// Time to gather what ended meanwhile, so that a backlog is claimed in handfuls.
const gatherMs = 20;

/** Starts the loop. */
export function startRefreshLoop(options: RefreshLoopOptions): RefreshLoop {
  const { db, catalog, refresher, log, isOpen, pollMs = 1_000, ownAppsMs = 10_000 } = options;
  const lanes = [catalogLanes(catalog), ownAppLanes(db, ownAppsMs)];
  const underWay = new Set<Promise<void>>();
  let stopped = false;
  let wake = Promise.withResolvers<void>();

  async function work(claim: Claim): Promise<void> {
    const { accountId, appSlug } = claim;
    try {
      await refresher.refresh(claim);
    } catch (error) {
      // An outage of the database or of a key service is not the row's fault: its claim ends by itself.
      const isOutage = error instanceof StatusError && outages.includes(error.code);
      log.warn({ accountId, appSlug, isOutage, err: error }, "a credential could not be refreshed");
      if (isOutage) return;
      if (await noteFault(db, claim))
        log.error({ accountId, appSlug }, "a credential is quarantined: it is left alone");
    }
  }

  function begin(claim: Claim, of: Lanes): void {
    const leaveLane = of.begin(claim);
    const working = work(claim)
      .catch((error: unknown) => log.warn({ err: error }, "a fault could not be noted"))
      .finally(() => {
        leaveLane();
        underWay.delete(working);
        wake.resolve();
      });
    underWay.add(working);
  }

  /** Claims one handful. True when there may be more than there was room for. */
  async function claimOnce(): Promise<boolean> {
    let isMore = false;
    for (const some of shuffled(lanes)) isMore = (await claimIn(some)) || isMore;
    return isMore;
  }

  async function claimIn(some: Lanes): Promise<boolean> {
    const limit = Math.min(mostInFlight - underWay.size, some.left());
    const rooms = await some.rooms();
    if (limit <= 0) return true;
    if (rooms.length === 0) return some.hasApps();
    const claims = await claimDue(db, rooms, limit);
    for (const claim of claims) begin(claim, some);
    const taken = ({ appSlug, projectId }: AppRoom) =>
      claims.filter((claim) => claim.appSlug === appSlug && (projectId ?? claim.projectId) === claim.projectId).length;
    return claims.length === limit || rooms.some((room) => taken(room) === room.room);
  }

  async function run(): Promise<void> {
    while (!stopped) {
      wake = Promise.withResolvers();
      let isMore = false;
      try {
        isMore = isOpen() && (await claimOnce());
      } catch (error) {
        log.warn({ err: error }, "due credentials could not be claimed");
      }
      if (stopped) return;
      // Not in step with the other processes.
      const pause = sleep(pollMs * (0.8 + 0.4 * Math.random()));
      await (isMore && underWay.size > 0 ? Promise.race([wake.promise.then(() => sleep(gatherMs)), pause]) : pause);
    }
  }

  const running = run();
  return {
    async stop() {
      stopped = true;
      await running;
      await Promise.all(underWay);
    },
  };
}
