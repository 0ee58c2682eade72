// Reads TypeScript files for the house rules: what each imports (types and `import()` count too), and the few other things
// that a rule asks for. Parsed by the parser that vitest brings, so neither a comment nor a text is taken for an import.
import { readdirSync, readFileSync } from "node:fs";
import { join, posix } from "node:path";
import { parseAst } from "vitest/node";

/** One import of a file. */
export interface Import {
  /** As written: `#libs/rpc.ts`, `./envelope.ts`, `node:crypto`, `@grpc/grpc-js`. */
  readonly specifier: string;
  /** The file meant, from the repository's root, when it is one of ours. */
  readonly file?: string;
  /** The package meant, when it is from outside; Node's own modules have their prefix. */
  readonly package?: string;
  /** The names imported; none for `import * as`, `export *` and `import()`. */
  readonly names: readonly string[];
}

/** What the rules know of a file. */
export interface SourceFile {
  readonly text: string;
  readonly imports: readonly Import[];
  readonly defaultExported: boolean;
  /** Whether it mentions `process.env`. */
  readonly environmentRead: boolean;
}

/** Files by path from the repository's root. */
export type SourceFiles = ReadonlyMap<string, SourceFile>;

interface Node {
  readonly type: string;
  readonly [key: string]: unknown;
}

/** Reads every .ts file of the folders. A folder that does not exist yet has none. */
export function readSources(root: string, folders: readonly string[]): SourceFiles {
  const paths = folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
      .filter((path) => path.endsWith(".ts"))
      .map((path) => posix.join(folder, path)),
  );
  return new Map(paths.sort().map((path) => [path, parseSource(path, readFileSync(join(root, path), "utf8"))]));
}

/** Parses one file. */
export function parseSource(path: string, text: string): SourceFile {
  const imports: Import[] = [];
  let defaultExported = false;
  let environmentRead = false;
  for (const node of nodes(parseAst(text, { lang: path.endsWith(".d.ts") ? "dts" : "ts" }, path))) {
    const { value: specifier } = (node.source ?? {}) as { value?: unknown };
    if (typeof specifier === "string") imports.push({ specifier, ...resolve(path, specifier), names: namesOf(node) });
    defaultExported ||= node.type === "ExportDefaultDeclaration";
    environmentRead ||= isNamed(node.object, "process") && isNamed(node.property, "env");
  }
  return { text, imports, defaultExported, environmentRead };
}

function* nodes(value: unknown): Generator<Node> {
  if (typeof value !== "object" || value === null) return;
  if ("type" in value) yield value as Node;
  for (const child of Object.values(value)) yield* nodes(child);
}

function isNamed(node: unknown, name: string): boolean {
  return (node as { name?: unknown } | undefined)?.name === name;
}

function namesOf(node: Node): readonly string[] {
  const specifiers = (node.specifiers ?? []) as readonly {
    imported?: { name?: string };
    local?: { name?: string };
  }[];
  return specifiers.flatMap(({ imported, local }) => (imported ?? local)?.name ?? []);
}

function resolve(path: string, specifier: string): { file: string } | { package: string } {
  if (specifier.startsWith("#libs/")) return { file: specifier.replace("#libs/", "libs/") };
  if (specifier.startsWith("#proto/")) return { file: specifier.replace("#proto/", "proto/gen/") };
  if (specifier.startsWith(".")) return { file: posix.join(posix.dirname(path), specifier) };
  if (specifier.startsWith("node:")) return { package: specifier };
  const [scope = "", name = ""] = specifier.split("/");
  return { package: scope.startsWith("@") ? `${scope}/${name}` : scope };
}
