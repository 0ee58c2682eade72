// How much the refresh loop may take of what is due, in lanes: so many requests under way to one token endpoint, so many a
// minute where the app says so. These are the lanes of the catalog's apps, which are fixed; own-app-lanes.ts has those of the
// projects' own.
import type { Catalog } from "#libs/catalog.ts";
import { isOauthApp, type OauthApp } from "./provider.ts";
import type { AppRoom, Claim } from "./refresh-claims.ts";

/** Lanes that the loop claims for. */
export interface Lanes {
  /** What may be claimed now of each app, in an order that favours none. */
  rooms(): Promise<readonly AppRoom[]>;
  /** Whether there is any app to claim for, with room or without. */
  hasApps(): boolean;
  /** How many may be claimed in all. */
  left(): number;
  /** Counts a claim until it is called back. */
  begin(claim: Claim): () => void;
}

/** The apps of one token endpoint's host. */
interface Lane {
  readonly apps: readonly OauthApp[];
  readonly budgets: ReadonlyMap<string, Budget>;
  inFlight: number;
}

const mostPerHost = 10;

/** The lanes of the catalog's apps: one for each host. */
export function catalogLanes(catalog: Catalog): Lanes {
  const lanes = lanesOf(catalog);
  const laneOf = new Map(lanes.flatMap((lane) => lane.apps.map((app) => [app.slug, lane] as const)));
  return {
    rooms: async () => shuffled(lanes).flatMap((lane) => roomsIn(lane)),
    hasApps: () => lanes.length > 0,
    left: () => Number.POSITIVE_INFINITY,
    begin({ appSlug }) {
      const lane = laneOf.get(appSlug);
      if (lane === undefined) return () => undefined;
      lane.budgets.get(appSlug)?.spend();
      lane.inFlight += 1;
      return () => {
        lane.inFlight -= 1;
      };
    },
  };
}

function lanesOf(catalog: Catalog): readonly Lane[] {
  const apps = [...catalog.values()].filter(isOauthApp);
  const byHost = Map.groupBy(apps, hostOf);
  return [...byHost.values()].map((group) => ({
    apps: group,
    budgets: new Map(group.map(({ slug, oauth2 }) => [slug, budget(oauth2.token.refreshes_per_minute, mostPerHost)])),
    inFlight: 0,
  }));
}

/** Where an app's refreshes go. An endpoint that has the account's fields in its host is many hosts; together they are one. */
export function hostOf({ slug, oauth2 }: OauthApp): string {
  return URL.parse(oauth2.token.url)?.host ?? slug;
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

/** How many an app may send. */
export interface Budget {
  /** How many may be sent now. */
  left(): number;
  spend(): void;
}

/** So many a minute, evenly, with no more than ten seconds' worth saved up; `unlimited` where the app says nothing. */
export function budget(perMinute: number | undefined, unlimited: number): Budget {
  if (perMinute === undefined) return { left: () => unlimited, spend: () => undefined };
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

/** The same items in an order by chance. */
export function shuffled<Item>(items: readonly Item[]): readonly Item[] {
  return items
    .map((item) => ({ item, at: Math.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}
