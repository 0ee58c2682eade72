// Stores what a provider has just given, for which there is no second chance: tries again until the database takes it. Kept in
// memory meanwhile, and given up after ten minutes with a loud line; an attempt must know itself again, for a commit whose
// acknowledgement was lost is repeated too.
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "#libs/log.ts";

const giveUpMs = 10 * 60_000;

/** Runs `attempt` until it succeeds. `of` says in the log whose it is. */
export async function persist<Result>(
  log: Logger,
  of: { readonly accountId: string; readonly appSlug: string },
  attempt: () => Promise<Result>,
): Promise<Result> {
  const { accountId, appSlug } = of;
  const endMs = performance.now() + giveUpMs;
  for (let waitMs = 100; ; waitMs = Math.min(waitMs * 2, 5_000)) {
    try {
      return await attempt();
    } catch (error) {
      const lost = performance.now() > endMs;
      log.error({ accountId, appSlug, lost, err: error }, "what a provider gave could not be stored yet");
      if (lost) throw error;
      await sleep(waitMs);
    }
  }
}
