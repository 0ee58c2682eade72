// How the tests run: one Postgres for the whole run, one database of its own for each test file that asks for one.
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/global-setup.ts"],
    // The files wait for Postgres and for child processes most of the time; more than two of them only slow each other.
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});
