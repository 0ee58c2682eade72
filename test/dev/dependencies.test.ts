// The judgement over the lock file that `npm run check` makes, on made-up lock files.
import { expect, test } from "vitest";
import { licenceFaults, versionFaults } from "../../dev/dependencies.ts";

test.each([
  ["1.14.3", true],
  ["1.9.20", true],
  ["1.14.4-beta.1", true],
  ["1.14.4", false],
  ["1.14.10", false],
  ["2.0.0", false],
])("version %s is below the floor 1.14.4: %s", (version, below) => {
  const faults = versionFaults(
    { packages: { "node_modules/@grpc/grpc-js": { version } } },
    { "@grpc/grpc-js": "1.14.4" },
  );
  expect(faults).toHaveLength(below ? 1 : 0);
});

test("a copy that another package brought is held to the floor, too, and an absent package is named", () => {
  const packages = {
    "node_modules/undici": { version: "8.0.0" },
    "node_modules/a/node_modules/undici": { version: "7.23.0" },
    "node_modules/not-undici": { version: "1.0.0" },
  };
  expect(versionFaults({ packages }, { undici: "7.24.0", pg: "8.0.0" })).toEqual([
    "node_modules/a/node_modules/undici is 7.23.0: 7.24.0 at least",
    "pg is not in package-lock.json",
  ]);
});

test("a licence that is not allowed, or not given, is named", () => {
  const packages = {
    "": { license: "Apache-2.0" },
    "node_modules/a": { license: "MIT" },
    "node_modules/b": { license: "GPL-3.0-only" },
    "node_modules/c": {},
    "node_modules/d": { license: "GPL-3.0-only OR MIT" },
    "node_modules/e": { license: "(MIT AND GPL-3.0-only)" },
    "node_modules/f": { license: "(MIT AND ISC)" },
  };
  expect(licenceFaults({ packages }, new Set(["MIT", "ISC"]))).toEqual([
    "node_modules/b: GPL-3.0-only",
    "node_modules/c: no licence given",
    "node_modules/e: (MIT AND GPL-3.0-only)",
  ]);
});
