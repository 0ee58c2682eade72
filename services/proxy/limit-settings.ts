// The settings of the proxy's limits.
import type { Config } from "#libs/config.ts";
import type { LimitRules } from "./limits.ts";

/** To be spread into the table of main.ts. */
export const limitSettings = {
  DEPUTY_LIMIT_WINDOW: { kind: "duration", default: "5m", help: "The time in which requests are counted." },
  DEPUTY_LIMIT_PROJECT_REQUESTS: {
    kind: "integer",
    default: "1000",
    help: "How many requests a project may send in the window, in each of its environments.",
  },
  DEPUTY_LIMIT_OF_PROJECTS: {
    kind: "list",
    default: "",
    help: "Projects with a limit of their own, like proj_1=5000.",
  },
  DEPUTY_LIMIT_ACCOUNT_REQUESTS: {
    kind: "integer",
    default: "0",
    help: "How many requests may be sent for one account in the window; 0 for no limit.",
  },
  DEPUTY_LIMIT_PROJECT_IN_FLIGHT: {
    kind: "integer",
    default: "200",
    help: "How many requests of a project each process works on at a time, in each of its environments.",
  },
  DEPUTY_LIMIT_ACCOUNT_IN_FLIGHT: {
    kind: "integer",
    default: "20",
    help: "How many requests for one account each process works on at a time.",
  },
  DEPUTY_LIMIT_STORE_URL: {
    kind: "text",
    default: "",
    help: "Where several processes count together: redis://, rediss:// or postgres://. Without it each counts for itself.",
  },
  DEPUTY_LIMIT_STORE_PASSWORD_FILE: { kind: "secret", default: "", help: "The store's password." },
} as const;

/** The limits that the settings make. Throws naming the setting that is wrong. */
export function limitRules(config: Config<typeof limitSettings>): LimitRules {
  return {
    windowMs: config.DEPUTY_LIMIT_WINDOW,
    projectRequests: config.DEPUTY_LIMIT_PROJECT_REQUESTS,
    requestsOfProjects: readProjectLimits(config.DEPUTY_LIMIT_OF_PROJECTS),
    accountRequests: config.DEPUTY_LIMIT_ACCOUNT_REQUESTS,
    projectInFlight: config.DEPUTY_LIMIT_PROJECT_IN_FLIGHT,
    accountInFlight: config.DEPUTY_LIMIT_ACCOUNT_IN_FLIGHT,
  };
}

/** Reads `proj_1=5000,proj_2=100`. Throws naming the entry that is wrong. */
export function readProjectLimits(entries: readonly string[]): ReadonlyMap<string, number> {
  return new Map(
    entries.map((entry) => {
      const [, projectId, requests] = /^([\w-]+)=(\d{1,9})$/.exec(entry) ?? [];
      if (projectId === undefined) throw new Error(`DEPUTY_LIMIT_OF_PROJECTS: ${entry} is not like proj_1=5000`);
      return [projectId, Number(requests)];
    }),
  );
}
