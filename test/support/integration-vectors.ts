// The egress vectors that are behaviour on the wire: each is a test, so that one without an action fails.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

/** A vector of the level `integration`: what happens, and what is to be seen. */
export interface IntegrationVector {
  readonly id: string;
  readonly category: string;
  readonly level: string;
  readonly input: string;
  readonly config: { readonly upstream?: { readonly status: number; readonly location: string } };
  readonly expect: "allow" | "deny";
  readonly why: string;
  /** gRPC code and HTTP status of the refusal, where the vector names them. */
  readonly code?: string;
  readonly http?: number;
}

/** Does what a vector says, for real, and throws unless it comes out as the vector says. */
export type Action = (vector: IntegrationVector) => Promise<void> | void;

/** All integration vectors of the file. */
export function readIntegrationVectors(): readonly IntegrationVector[] {
  const file = join(import.meta.dirname, "../vectors/egress.json");
  const { vectors } = JSON.parse(readFileSync(file, "utf8")) as { vectors: readonly IntegrationVector[] };
  return vectors.filter(({ level }) => level === "integration");
}

/** One test for each vector of a category. */
export function testVectors(category: string, actions: Readonly<Record<string, Action>>): void {
  const vectors = readIntegrationVectors().filter((vector) => vector.category === category);
  describe(`${category} vectors`, () => {
    it.each(vectors.map((vector) => [vector.id, vector.why, vector] as const))("%s: %s", async (id, _why, vector) => {
      const action = actions[id];
      if (action === undefined) throw new Error(`no test does what ${id} says`);
      await action(vector);
    });

    it("are in the file, each that has a test", () => {
      expect(Object.keys(actions).filter((id) => !vectors.some((vector) => vector.id === id))).toEqual([]);
    });
  });
}
