// That an address which swallows every packet costs a caller no more than the time that was given.
import { beforeAll, describe, expect, it } from "vitest";
import type { BlackHoleReport } from "../support/black-hole.ts";
import { inNamespace, isWithoutNamespaces, namespaceReason } from "../support/namespace.ts";

describe.skipIf(isWithoutNamespaces)(`an upstream that never answers the first packet${namespaceReason}`, () => {
  let report: BlackHoleReport;
  beforeAll(async () => {
    report = await inNamespace("black-hole.ts");
  }, 60_000);

  const cases = [
    ["when the request's time is up", "shortOfTime", 700],
    ["when the time for a connection is up", "connecting", 900],
    ["when the time of a stream is up", "streamed", 700],
  ] as const;
  it.each(cases)("is DEADLINE_EXCEEDED %s, and nothing was sent", (_when, name, limitMs) => {
    const { tookMs, ...end } = report[name];
    expect(end).toMatchObject({ code: "DEADLINE_EXCEEDED", reason: "UPSTREAM_TIMEOUT", sent: false });
    // The HTTP client's clock for connections is a coarse one.
    expect(tookMs).toBeGreaterThan(limitMs * 0.7);
    expect(tookMs).toBeLessThan(limitMs + 1_000);
  });
});
