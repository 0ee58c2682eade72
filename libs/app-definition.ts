// An app's definition as text, YAML or JSON, in the catalog's own schema: how projects bring apps of their own. Text of others,
// so every fault is told by its field, all at once, and nothing that is read here throws.
import { LineCounter, parseDocument } from "yaml";
import { type CatalogApp, entrySchema } from "./catalog.ts";
import type { FieldViolation } from "./errors.ts";

/** An app, or everything that is wrong with its text. */
export type JudgedDefinition =
  | { readonly kind: "app"; readonly app: CatalogApp }
  | { readonly kind: "faults"; readonly faults: readonly FieldViolation[] };

/** Reads a definition that stands in the request's field `definition`. */
export function judgeDefinition(text: string): JudgedDefinition {
  const read = readText(text);
  if ("fault" in read) return faults({ field: "definition", description: read.fault });
  const result = entrySchema.safeParse(read.value);
  if (result.success) return { kind: "app", app: result.data };
  return faults(
    ...result.error.issues.flatMap((issue) => {
      const path = issue.path.map(String);
      if (issue.code !== "unrecognized_keys") return [{ field: fieldOf(path), description: issue.message }];
      return issue.keys.map((key) => ({
        field: fieldOf([...path, key]),
        description: "is not a field of the catalog",
      }));
    }),
  );
}

function faults(...found: readonly FieldViolation[]): JudgedDefinition {
  return { kind: "faults", faults: found };
}

function fieldOf(path: readonly string[]): string {
  return ["definition", ...path].join(".");
}

function readText(text: string): { readonly value: unknown } | { readonly fault: string } {
  try {
    // Not pretty: a pretty message repeats the text.
    const lineCounter = new LineCounter();
    const document = parseDocument(text, { lineCounter, prettyErrors: false });
    const [error] = document.errors;
    if (error === undefined) return { value: document.toJS() };
    return { fault: `is neither YAML nor JSON (line ${lineCounter.linePos(error.pos[0]).line}, ${error.code})` };
  } catch {
    // Aliases that would become too much, or too deep a nesting.
    return { fault: "is too deep, or has too many aliases" };
  }
}

// The same text is the same app, so nothing in here can be stale. At most some ten MB.
const mostKept = 1_000;
const kept = new Map<string, CatalogApp>();

/** The app of a definition that was judged before; undefined when today's schema does not take it any more. */
export function readDefinition(text: string): CatalogApp | undefined {
  const known = kept.get(text);
  if (known !== undefined) return known;
  const judged = judgeDefinition(text);
  if (judged.kind === "faults") return undefined;
  if (kept.size >= mostKept) kept.clear();
  kept.set(text, judged.app);
  return judged.app;
}
