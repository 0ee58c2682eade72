// That nothing reaches an address that is not public: every vector, end to end, in a network namespace where those addresses
// are listeners that count. The same listeners catch a naive fetch of the same URLs, so they would have caught the sender.
import { beforeAll, describe, expect, it } from "vitest";
import { openEgress } from "#libs/egress.ts";
import { EgressError, egressStatusError } from "#libs/egress-error.ts";
import { proxyHttpError } from "../../services/gateway/http-errors.ts";
import type { CanaryReport } from "../support/canaries.ts";
import { type Action, type IntegrationVector, testVectors } from "../support/integration-vectors.ts";
import { inNamespace, isWithoutNamespaces, namespaceReason } from "../support/namespace.ts";

/** A name that leads to these addresses is refused as the vector says. */
async function refusedFor(addresses: readonly string[], { code, http }: IntegrationVector): Promise<void> {
  const egress = openEgress({ resolve: async () => addresses });
  const request = {
    url: new URL("https://cname.evil.com/x"),
    method: "GET",
    headers: [],
    totalTimeoutMs: 5000,
    maxBodyBytes: 1,
  };
  const error = await egress.send(request).catch((reason: unknown) => reason);
  await egress.close();
  if (!(error instanceof EgressError)) throw new Error("no refusal");
  const told = egressStatusError(error, "GET");
  expect([error.sent, told.code, proxyHttpError(told).status]).toEqual([false, code, http]);
}

describe.skipIf(isWithoutNamespaces)(`in a namespace of canaries${namespaceReason}`, () => {
  let report: CanaryReport;
  beforeAll(async () => {
    report = await inNamespace("canaries.ts");
  }, 120_000);

  it("no vector that the rules and the sender see reaches a canary", () => {
    expect(report.judged).toBeGreaterThan(200);
    expect(report.allowed).toBeGreaterThan(25);
    expect(report.hits).toEqual([]);
    // What has a public address in its own vector was dialled there.
    expect(report.publicHits).toBeGreaterThan(0);
    // Every request that the rules allowed ended at its address.
    expect(Object.keys(report.ends).filter((end) => !["denied", "connect"].includes(end))).toEqual([]);
    expect(report.ends.denied).toBeGreaterThan(report.allowed * 4);
  });

  it("no URL reaches one past the sender alone, whatever it names", () => {
    expect(report.hitsOfSender).toEqual([]);
  });

  it("a name that turns from a public address to a canary is served over the judged connection, then refused", () => {
    expect(report.rebinding).toEqual(Array(5).fill(["200 after 1", "200 after 1", "denied after 2"]));
  });

  /** The first of the canaries is 127.0.0.1. */
  const rebinding: Action = () => {
    expect(report.rebinding[0]).toEqual(["200 after 1", "200 after 1", "denied after 2"]);
    expect(report.hits).toEqual([]);
  };

  testVectors("dns", {
    "dns-029": rebinding,
    "dns-030": rebinding,
    "dns-032": (vector) => refusedFor(["169.254.169.254"], vector),
    "dns-033": (vector) =>
      refusedFor(
        Array.from({ length: 4000 }, (_, index) => `8.8.${index >> 8}.${index & 255}`),
        vector,
      ),
  });

  it("the canaries catch a naive fetch of the same URLs", () => {
    expect(report.hitsOfNaive.length).toBeGreaterThan(50);
    for (const address of ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "fd00:ec2::254"]) {
      expect(report.hitsOfNaive.some((hit) => hit.includes(address))).toBe(true);
    }
  });
});
