// How much of the proxy one project and one account may use: requests in a window, and requests at a time. What is refused is
// RESOURCE_EXHAUSTED and says when to come again. Requests at a time are counted by each process for itself.
import { StatusError } from "#libs/errors.ts";
import type { LimitStore } from "./limit-store.ts";

/** Whom a request is counted for. */
export interface Counted {
  readonly projectId: string;
  readonly environment: number;
  /** Empty with an inline credential. */
  readonly accountId: string;
}

/** The limits. */
export interface LimitRules {
  readonly windowMs: number;
  /** For each project, in each of its environments. */
  readonly projectRequests: number;
  /** Projects with a limit of their own. */
  readonly requestsOfProjects: ReadonlyMap<string, number>;
  /** For each account; 0 for none. */
  readonly accountRequests: number;
  readonly projectInFlight: number;
  readonly accountInFlight: number;
}

/** The limits at work. */
export interface Limits {
  /** Lets a request in or throws. What it gives is to be called once, when the request is over. */
  enter(counted: Counted): Promise<() => void>;
}

/** Starts counting. */
export function startLimits(rules: LimitRules, store: LimitStore, now: () => number): Limits {
  const windowSeconds = Math.ceil(rules.windowMs / 1000);
  const ofProjects = store.counter("project", windowSeconds);
  const ofAccounts = store.counter("account", windowSeconds);
  const projectsInFlight = inFlight(rules.projectInFlight, "project");
  const accountsInFlight = inFlight(rules.accountInFlight, "account");

  async function count(counter: typeof ofProjects, key: string, limit: number): Promise<void> {
    const { consumedPoints, msBeforeNext } = await counter.consume(key);
    if (consumedPoints <= limit) return;
    throw new StatusError("RESOURCE_EXHAUSTED", "RATE_LIMITED", `More than ${limit} requests in ${windowSeconds} s.`, {
      metadata: {
        limit: String(limit),
        retry_after_seconds: String(Math.ceil(msBeforeNext / 1000)),
        reset_time: String(Math.ceil((now() + msBeforeNext) / 1000)),
      },
    });
  }

  return {
    async enter({ projectId, environment, accountId }) {
      const project = `${projectId}/${environment}`;
      const account = `${projectId}/${accountId}`;
      projectsInFlight.enter(project);
      if (accountId !== "") {
        try {
          accountsInFlight.enter(account);
        } catch (error) {
          projectsInFlight.leave(project);
          throw error;
        }
      }
      const leave = () => {
        projectsInFlight.leave(project);
        if (accountId !== "") accountsInFlight.leave(account);
      };
      try {
        await count(ofProjects, project, rules.requestsOfProjects.get(projectId) ?? rules.projectRequests);
        if (accountId !== "" && rules.accountRequests > 0) await count(ofAccounts, account, rules.accountRequests);
        return leave;
      } catch (error) {
        leave();
        throw error;
      }
    },
  };
}

/** Counts what is at work, by key. */
function inFlight(most: number, whose: string) {
  const counts = new Map<string, number>();
  return {
    enter(key: string): void {
      const count = counts.get(key) ?? 0;
      if (count >= most) {
        throw new StatusError(
          "RESOURCE_EXHAUSTED",
          "TOO_MANY_IN_FLIGHT",
          `This ${whose} has ${most} requests at work: wait for one to end.`,
          { metadata: { limit: String(most), retry_after_seconds: "1" } },
        );
      }
      counts.set(key, count + 1);
    },
    leave(key: string): void {
      const count = counts.get(key) ?? 0;
      if (count <= 1) counts.delete(key);
      else counts.set(key, count - 1);
    },
  };
}
