// Refreshes credentials before their tokens end, so that no caller ever waits for one. Every process runs the loop; rows are
// shared by claiming them. A provider has a lane of its own: so many requests under way to one token endpoint, so many a
// minute where the app says so, and what does not fit stays in the database, where it is in nobody's way. A row that cannot
// be worked on is left alone after some tries. Everything else (locks, intents, pauses) is the refresh's own: refresh.ts.
import { setTimeout as sleep } from "node:timers/promises";
import type { Catalog } from "#libs/catalog.ts";
import { type StatusCode, StatusError } from "#libs/errors.ts";
import type { Logger } from "#libs/log.ts";
import { isOauthApp, type OauthApp } from "./provider.ts";
import type { Refresher } from "./refresh.ts";
import { type AppRoom, type Claim, claimDue, noteFault } from "./refresh-claims.ts";
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
}

/** A loop at work. */
export interface RefreshLoop {
  /** Claims nothing more, and resolves when what is under way has ended. */
  stop(): Promise<void>;
}

const outages: readonly StatusCode[] = ["UNAVAILABLE", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED"];

const mostInFlight = 64;
const mostPerHost = 10;
// Time to gather what ended meanwhile, so that a backlog is claimed in handfuls.
const gatherMs = 20;

/** Starts the loop. */
export function startRefreshLoop(options: RefreshLoopOptions): RefreshLoop {
  const { db, catalog, refresher, log, isOpen, pollMs = 1_000 } = options;
  const lanes = lanesOf(catalog);
  const laneOf = new Map(lanes.flatMap((lane) => lane.apps.map((app) => [app.slug, lane] as const)));
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

  function begin(claim: Claim): void {
    const lane = laneOf.get(claim.appSlug);
    if (lane) lane.inFlight += 1;
    const working = work(claim)
      .catch((error: unknown) => log.warn({ err: error }, "a fault could not be noted"))
      .finally(() => {
        if (lane) lane.inFlight -= 1;
        underWay.delete(working);
        wake.resolve();
      });
    underWay.add(working);
  }

  /** Claims one handful. True when there may be more than there was room for. */
  async function claimOnce(): Promise<boolean> {
    const limit = mostInFlight - underWay.size;
    const rooms = shuffled(lanes).flatMap((lane) => roomsIn(lane));
    if (limit <= 0 || rooms.length === 0) return true;
    const claims = await claimDue(db, rooms, limit);
    for (const claim of claims) {
      laneOf.get(claim.appSlug)?.budgets.get(claim.appSlug)?.spend();
      begin(claim);
    }
    const taken = (slug: string) => claims.filter(({ appSlug }) => appSlug === slug).length;
    return claims.length === limit || rooms.some(({ appSlug, room }) => taken(appSlug) === room);
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

/** The apps of one token endpoint's host. */
interface Lane {
  readonly apps: readonly OauthApp[];
  readonly budgets: ReadonlyMap<string, Budget>;
  inFlight: number;
}

function lanesOf(catalog: Catalog): readonly Lane[] {
  const apps = [...catalog.values()].filter(isOauthApp);
  // An endpoint that has the account's fields in its host is many hosts; together they count as one.
  const byHost = Map.groupBy(apps, ({ slug, oauth2 }) => URL.parse(oauth2.token.url)?.host ?? slug);
  return [...byHost.values()].map((group) => ({
    apps: group,
    budgets: new Map(group.map(({ slug, oauth2 }) => [slug, budget(oauth2.token.refreshes_per_minute)])),
    inFlight: 0,
  }));
}

/** What may be claimed of each of its apps, so that together they do not get beyond the lane. */
function roomsIn({ apps, budgets, inFlight }: Lane): readonly AppRoom[] {
  let left = mostPerHost - inFlight;
  const share = Math.ceil(left / apps.length);
  return shuffled(apps).flatMap(({ slug }) => {
    const room = Math.min(left, share, budgets.get(slug)?.left() ?? 0);
    left -= Math.max(0, room);
    return room > 0 ? [{ appSlug: slug, room }] : [];
  });
}

interface Budget {
  /** How many may be sent now. */
  left(): number;
  spend(): void;
}

/** So many a minute, evenly, with no more than ten seconds' worth saved up. */
function budget(perMinute: number | undefined): Budget {
  if (perMinute === undefined) return { left: () => mostPerHost, spend: () => undefined };
  const most = Math.max(1, perMinute / 6);
  let saved = most;
  let readMs = performance.now();
  const refill = () => {
    const nowMs = performance.now();
    saved = Math.min(most, saved + ((nowMs - readMs) / 60_000) * perMinute);
    readMs = nowMs;
  };
  return {
    left() {
      refill();
      return Math.floor(saved);
    },
    spend() {
      saved -= 1;
    },
  };
}

function shuffled<Item>(items: readonly Item[]): readonly Item[] {
  return items
    .map((item) => ({ item, at: Math.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}
