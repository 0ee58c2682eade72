// How the tests run: one Postgres for the whole run, one database of its own for each test file that asks for one.
import { join } from "node:path";
import { defineConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

// The files that take longest, mostly waiting for leases, key services and processes, the longest first: begun last, one of
// them would be alone at the end.
const longest = [
  "account/webhook-crash",
  "system/leases",
  "system/hygiene",
  "system/rotation",
  "vault/kek-conformance",
  "vault/refresh-crash",
  "vault/refresh-outage",
  "vault/shared-grants",
  "vault/watch-leases",
  "proxy/forward-stream",
  "vault/stop",
  "system/start",
  "libs/rpc-connections",
  "system/",
];

function rankOf({ moduleId }: TestSpecification): number {
  const found = longest.findIndex((part) => moduleId.includes(`/test/${part}`));
  return found === -1 ? longest.length : found;
}

/** A class because vitest makes one. */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    return (await super.sort(files)).sort((a, b) => rankOf(a) - rankOf(b));
  }
}

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/global-setup.ts"],
    sequence: { sequencer: LongestFirst },
    // On two cores: the long files wait more than they work, and one more fills the gaps; more than that slow each other.
    maxWorkers: 3,
    // The services' code is compiled once for all the processes that tests start.
    env: { NODE_COMPILE_CACHE: join(import.meta.dirname, ".deputy/test-compile-cache") },
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});
