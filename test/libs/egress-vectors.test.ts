// Each egress vector that the pure rules can answer. Those of the level `integration` are behaviour on the wire, and each has a
// test of its own in test/egress or in egress-canaries.test.ts.
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { classifyAddress } from "#libs/addresses.ts";
import { readUnitVectors, runVector } from "../../dev/vectors.ts";
import { readIntegrationVectors } from "../support/integration-vectors.ts";

const file = join(import.meta.dirname, "../vectors/egress.json");
const vectors = readUnitVectors(file);

describe("egress vectors", () => {
  it("are all there", () => {
    expect(vectors).toHaveLength(288);
  });

  it.each(vectors.map((vector) => [vector.id, vector] as const))("%s", (_id, vector) => {
    const { got, expected } = runVector(vector);
    expect(got).toBe(expected);
    if (vector.class !== undefined) {
      expect(classifyAddress(String(vector.input))).toBe(vector.class);
    }
  });
});

it("vectors of the level integration are of the categories that have tests", () => {
  // egress/*.test.ts, and for names that rebind egress-canaries.test.ts.
  const tested = ["dns", "edge-smuggling", "oauth-callback", "redirect", "response"];
  expect([...new Set(readIntegrationVectors().map(({ category }) => category))].sort()).toEqual(tested);
});

it("the vectors command names each miss and exits with 1", async () => {
  const directory = await mkdtemp(join(tmpdir(), "deputy-vectors-"));
  try {
    const [first] = vectors;
    const wrong = { ...first, id: "turned-round", expect: first?.expect === "deny" ? "allow" : "deny", code: "NONE" };
    await writeFile(join(directory, "wrong.json"), JSON.stringify({ vectors: [first, wrong] }));
    const run = promisify(execFile)(process.execPath, ["dev/vectors.ts", join(directory, "wrong.json")]);
    const { code, stdout } = await run.then(
      () => ({ code: 0, stdout: "" }),
      (error: { code: number; stdout: string }) => error,
    );
    expect(code).toBe(1);
    const [, got] = /^turned-round: got (.+), expected .+\n1 passed, 1 failed\n$/.exec(stdout) ?? [];
    expect(got).toBe(first && runVector(first).got);
  } finally {
    await rm(directory, { recursive: true });
  }
});
