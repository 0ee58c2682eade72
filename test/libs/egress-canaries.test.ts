// That nothing reaches an address that is not public: every vector, end to end, in a network namespace where those addresses
// are listeners that count. The same listeners catch a naive fetch of the same URLs, so they would have caught the sender.
import { execFile, execFileSync } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import type { CanaryReport } from "../support/canaries.ts";

/** How this machine makes a network namespace: as root, else as root of a user namespace. */
const unshare = [["--net"], ["--net", "--map-root-user"]].find((flags) => {
  try {
    execFileSync("unshare", [...flags, "ip", "link", "set", "lo", "up"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
});
const reason = unshare === undefined ? " (skipped: this machine lets nobody make a network namespace)" : "";

describe.skipIf(unshare === undefined)(`in a namespace of canaries${reason}`, () => {
  let report: CanaryReport;
  beforeAll(async () => {
    const program = [process.execPath, join(import.meta.dirname, "../support/canaries.ts")];
    const options = { timeout: 100_000, maxBuffer: 1 << 24 };
    const { stdout } = await promisify(execFile)("unshare", [...(unshare ?? []), ...program], options);
    report = JSON.parse(stdout) as CanaryReport;
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
    expect(report.rebinding).toEqual(Array(5).fill("200,200,denied"));
  });

  it("the canaries catch a naive fetch of the same URLs", () => {
    expect(report.hitsOfNaive.length).toBeGreaterThan(50);
    for (const address of ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "fd00:ec2::254"]) {
      expect(report.hitsOfNaive.some((hit) => hit.includes(address))).toBe(true);
    }
  });
});
