// When the space of new objects is emptied for bodies that were passed on.
import { afterEach, expect, test, vi } from "vitest";
import { passedOn } from "../../services/proxy/body-memory.ts";

const { gc } = globalThis;
afterEach(() => {
  globalThis.gc = gc;
});

test("after every four megabytes once, and with the bytes counted anew", () => {
  const collect = vi.fn();
  globalThis.gc = collect as unknown as NodeJS.GCFunction;
  const megabyte = Buffer.alloc(1024 * 1024);
  const counts = Array.from({ length: 9 }, () => {
    passedOn(megabyte);
    return collect.mock.calls.length;
  });
  expect(counts).toEqual([0, 0, 0, 1, 1, 1, 1, 2, 2]);
  expect(collect).toHaveBeenCalledWith({ type: "minor" });
});

test("never in a process that was not started for it", () => {
  globalThis.gc = undefined as unknown as NodeJS.GCFunction;
  for (let count = 0; count < 3; count += 1) passedOn(Buffer.alloc(4 * 1024 * 1024));
});
