// Signals between processes, by a database that all of them listen to.
import { expect, test } from "vitest";
import { listenForSignals } from "#libs/database-signals.ts";
import { createLogger } from "#libs/log.ts";
import { createTestDatabase } from "../support/postgres.ts";

const { runtime } = await createTestDatabase("account");
const options = {
  database: { ...runtime, applicationName: "signals-test", statementTimeoutMs: 10_000 },
  channels: ["test_signals"] as const,
  log: createLogger("test", "silent"),
};

test("wakes who waits, in this process and in others, and tells what came with it", async () => {
  const payloads: string[] = [];
  const [one, other] = [
    listenForSignals(options),
    listenForSignals({ ...options, onPayload: (_, payload) => payloads.push(payload) }),
  ];
  // The first word is its own, when it begins to listen.
  await Promise.all([one, other].map((signals) => signals.next("test_signals", 0, 10_000)));
  const woken = Promise.all([one, other].map((signals) => signals.next("test_signals", 1, 10_000)));
  await one.notify("test_signals", "hello");
  await woken;
  expect([one.count("test_signals"), other.count("test_signals"), payloads]).toEqual([2, 2, ["hello"]]);
  await Promise.all([one.stop(), other.stop()]);
});

test("stops while it is still connecting", { timeout: 10_000 }, async () => {
  const signals = listenForSignals(options);
  await signals.stop();
  expect(signals.stopping.aborted).toBe(true);
});
