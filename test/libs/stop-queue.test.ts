// Stopping a queue: in its order when all is well, and in time when the database is gone.
import { expect, test } from "vitest";
import { stopQueue } from "#libs/stop-queue.ts";

const never = () => new Promise<void>(() => {});

test("closes the pool when the jobs have ended, also those that could not end well", async () => {
  const steps: string[] = [];
  const step = (name: string) => async () => {
    steps.push(name);
  };
  await stopQueue({ stop: step("jobs") }, { end: step("pool") }, 1_000);
  expect(steps).toEqual(["jobs", "pool"]);
  const broken = { stop: () => Promise.reject(new Error("the database is gone")) };
  await expect(stopQueue(broken, { end: step("pool again") }, 1_000)).rejects.toThrow("the database is gone");
  expect(steps.at(-1)).toBe("pool again");
});

test("waits neither for jobs nor for a pool that do not end, and hears no failure of theirs any more", async () => {
  const uncaught: unknown[] = [];
  const note = (error: unknown) => uncaught.push(error);
  process.on("unhandledRejection", note);
  const startMs = performance.now();
  await stopQueue({ stop: never }, { end: never }, 50);
  await stopQueue({ stop: async () => {} }, { end: never }, 50);
  const late = Promise.withResolvers<void>();
  await stopQueue({ stop: () => late.promise }, { end: async () => {} }, 50);
  late.reject(new Error("too late"));
  await new Promise((resolve) => setTimeout(resolve, 20));
  process.off("unhandledRejection", note);
  expect(uncaught).toEqual([]);
  expect(performance.now() - startMs).toBeLessThan(5_000);
});
