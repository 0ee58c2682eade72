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

test("who serves callers without end holds background work back for some seconds only", async () => {
  const { serve, standBack } = callersFirst();
  const gate = Promise.withResolvers<void>();
  const endless = serve(() => gate.promise);
  const startMs = performance.now();
  await standBack();
  expect(performance.now() - startMs).toBeGreaterThan(4_900);
  gate.resolve();
  await endless;
}, 15_000);
