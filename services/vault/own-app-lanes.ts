// The refresh loop's lanes for the projects' own apps. There can be many of those, of many tenants, so no poll looks at them
// all: every few seconds one query finds those that have something due soon, and polls between claim for these alone. What
// is due long before its token ends loses nothing by that; what is needed at once is refreshed by its reader.
//
// Own apps share some of the process's slots and no more, a project's some of those, and one host of a project's fewer still: a
// tenant whose provider hangs slows down neither the catalog's apps nor, for long, another tenant's.
import { sql } from "kysely";
import { readDefinition } from "#libs/app-definition.ts";
import { isOauthApp } from "./provider.ts";
import type { AppRoom, Claim } from "./refresh-claims.ts";
import { type Budget, budget, hostOf, type Lanes, shuffled } from "./refresh-lanes.ts";
import type { VaultDatabase } from "./schema.ts";

/** An own app that has something due. */
interface DueApp {
  readonly projectId: string;
  readonly appSlug: string;
  readonly host: string;
  readonly refreshesPerMinute: number | undefined;
}

const most = 24;
const mostPerProject = 8;
const mostPerHost = 4;

// How many apps are claimed for at a time: by chance, when more have something due.
const mostApps = 500;

/** The lanes of own apps; what is due is looked for every `searchMs`. */
export function ownAppLanes(db: VaultDatabase, searchMs: number): Lanes {
  // By project, by project and host: what is under way.
  const inFlight = new Map<string, number>();
  const count = (name: string, by: number) => {
    const now = (inFlight.get(name) ?? 0) + by;
    if (now === 0) inFlight.delete(name);
    else inFlight.set(name, now);
  };
  const free = (name: string, cap: number) => cap - (inFlight.get(name) ?? 0);
  let apps: ReadonlyMap<string, DueApp & { readonly budget: Budget }> = new Map();
  let searchedMs = Number.NEGATIVE_INFINITY;

  async function search(): Promise<void> {
    if (performance.now() - searchedMs < searchMs) return;
    const found = await listDueApps(db, searchMs);
    searchedMs = performance.now();
    apps = new Map(
      found.map((app) => {
        const known = apps.get(nameOf(app));
        const isSame = known?.refreshesPerMinute === app.refreshesPerMinute;
        const kept = known !== undefined && isSame ? known.budget : budget(app.refreshesPerMinute, mostPerHost);
        return [nameOf(app), { ...app, budget: kept }];
      }),
    );
  }

  return {
    async rooms() {
      await search();
      const planned = new Map<string, number>();
      return shuffled([...apps.values()]).flatMap((app): readonly AppRoom[] => {
        const { projectId, appSlug, host } = app;
        const [project, lane] = [projectId, laneOf(projectId, host)];
        const room = Math.min(
          free(project, mostPerProject) - (planned.get(project) ?? 0),
          free(lane, mostPerHost) - (planned.get(lane) ?? 0),
          app.budget.left(),
        );
        if (room <= 0) return [];
        for (const name of [project, lane]) planned.set(name, (planned.get(name) ?? 0) + room);
        return [{ projectId, appSlug, room }];
      });
    },
    hasApps: () => apps.size > 0,
    left: () => free("", most),
    begin(claim: Claim) {
      const app = apps.get(nameOf(claim));
      app?.budget.spend();
      const names = ["", claim.projectId, ...(app ? [laneOf(app.projectId, app.host)] : [])];
      for (const name of names) count(name, 1);
      return () => {
        for (const name of names) count(name, -1);
      };
    },
  };
}

function nameOf({ projectId, appSlug }: Pick<Claim, "projectId" | "appSlug">): string {
  return `${projectId} ${appSlug}`;
}

function laneOf(projectId: string, host: string): string {
  return `${projectId} ${host}`;
}

async function listDueApps(db: VaultDatabase, aheadMs: number): Promise<readonly DueApp[]> {
  // One look at an index for each own app with OAuth.
  const { rows } = await sql<{ projectId: string; slug: string; definition: string }>`
    select app.project_id, app.slug, app.definition from own_apps app
    where app.is_oauth and app.destroy_time is null
      and exists (
        select from credentials
        where own_app and credentials.project_id = app.project_id and app_slug = app.slug and state in ('ACTIVE', 'UNKNOWN')
          and next_refresh_time <= now() + make_interval(secs => ${aheadMs / 1000}))
    order by random()
    limit ${mostApps}`.execute(db);
  return rows.flatMap(({ projectId, slug, definition }) => {
    const app = readDefinition(definition);
    if (app === undefined || !isOauthApp(app)) return [];
    const { refreshes_per_minute: refreshesPerMinute } = app.oauth2.token;
    return [{ projectId, appSlug: slug, host: hostOf(app), refreshesPerMinute }];
  });
}
