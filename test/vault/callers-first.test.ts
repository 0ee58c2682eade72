// Background work that stands back while callers are served, and for how long.
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { callersFirst } from "../../services/vault/callers-first.ts";

test("background work begins when no caller has been served for a moment", async () => {
  const { serve, standBack } = callersFirst();
  const order: string[] = [];
  const first = serve(() => sleep(200).then(() => order.push("first caller")));
  const background = standBack().then(() => order.push("background"));
  await first;
  // The next batch of the same caller comes within the moment.
  await serve(() => sleep(50).then(() => order.push("second caller")));
  await background;
  expect(order).toEqual(["first caller", "second caller", "background"]);
});

test("work that fails holds nobody back, and its failure reaches its caller", async () => {
  const { serve, standBack } = callersFirst();
  await expect(serve(() => Promise.reject(new Error("no")))).rejects.toThrow("no");
  const startMs = performance.now();
  await standBack();
  expect(performance.now() - startMs).toBeLessThan(2_000);
});

test("callers without end have their time once, and then background work goes on until there was a pause", async () => {
  const { serve, standBack } = callersFirst({ pauseMs: 100, mostMs: 2_000 });
  let isOver = false;
  const oneAfterTheOther = (async () => {
    while (!isOver) await serve(() => sleep(20));
  })();
  const startMs = performance.now();
  await standBack();
  const heldMs = performance.now() - startMs;
  for (let job = 0; job < 5; job += 1) await standBack();
  const restMs = performance.now() - startMs - heldMs;
  expect(heldMs).toBeGreaterThan(1_900);
  expect(restMs).toBeLessThan(1_000);
  isOver = true;
  await oneAfterTheOther;
  // The pause.
  await sleep(400);
  const gate = Promise.withResolvers<void>();
  const next = serve(() => gate.promise);
  const order: string[] = [];
  const background = standBack().then(() => order.push("background"));
  await sleep(500);
  order.push("next caller");
  gate.resolve();
  await Promise.all([next, background]);
  expect(order).toEqual(["next caller", "background"]);
}, 30_000);
