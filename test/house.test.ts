// Holds the rules about which file may import what. Each rule is shown to see a planted fault, then finds none in the code.
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import {
  arrowsFall,
  dependenciesDeclared,
  filesInForm,
  ideasWithoutContract,
  importPaths,
  noCircle,
  noPlaintext,
  nothingPrivate,
  oneDoor,
  type Rule,
  servicesApart,
} from "./support/house-rules.ts";
import { parseSource, readSources, type SourceFiles } from "./support/imports.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const read = (path: string) => readFileSync(`${root}/${path}`, "utf8");

/** `get-account.ts` for each `rpc GetAccount` of the contract. */
function rpcFileNames(): ReadonlySet<string> {
  const protos = readdirSync(`${root}/proto/deputy`, { recursive: true, encoding: "utf8" }).filter((path) =>
    path.endsWith(".proto"),
  );
  const names = protos.flatMap((path) => [...read(`proto/deputy/${path}`).matchAll(/^ {2}rpc (\w+)\(/gm)]);
  return new Set(names.map(([, name = ""]) => `${name.replace(/(?<=.)[A-Z]/g, "-$&").toLowerCase()}.ts`));
}

const rules = {
  "services do not import one another": servicesApart,
  "imports point from services to libs to the contract, and nothing imports a main.ts": arrowsFall,
  "idea files do not import the contract": ideasWithoutContract(rpcFileNames()),
  "each outside package, cipher and the environment has one door": oneDoor,
  "no file imports itself through others": noCircle,
  "packages are declared where they are used": dependenciesDeclared(JSON.parse(read("package.json"))),
  "import paths are `#` across folders and relative inside": importPaths,
  "files are in form": filesInForm,
  "nothing that runs listens without TLS": noPlaintext,
  "nothing private to a machine and no secret is in the code": nothingPrivate,
} satisfies Record<string, Rule>;

/** A table of made-up files; each begins with a comment unless its text begins with `!`. */
function planted(texts: Readonly<Record<string, string>>): SourceFiles {
  return new Map(
    Object.entries(texts).map(([path, text]) => [
      path,
      parseSource(path, text.startsWith("!") ? text.slice(1) : `// A file.\n${text}\n`),
    ]),
  );
}

// Split, so that this file does not break the rules that it plants faults for.
const home = ["", "home", "ann"].join("/");
const secret = ["pass", 'word = "0123456789abcdef"'].join("");

describe("a planted fault is named", () => {
  test.each<[Rule, Record<string, string>, string]>([
    [servicesApart, { "services/vault/a.ts": 'import type { A } from "../account/a.ts";' }, "services/account/a.ts"],
    [servicesApart, { "services/vault/a.ts": 'type A = import("../account/a.ts").A;' }, "services/account/a.ts"],
    [servicesApart, { "services/vault/a.ts": 'export * from "../account/a.ts";' }, "services/account/a.ts"],
    [servicesApart, { "services/vault/a.ts": 'await import("../account/a.ts");' }, "services/account/a.ts"],
    [arrowsFall, { "libs/a.ts": 'import { b } from "../services/vault/b.ts";' }, "services/vault/b.ts"],
    [arrowsFall, { "libs/a.ts": 'import { b } from "../dev/b.ts";' }, "../dev/b.ts"],
    [arrowsFall, { "services/vault/a.ts": 'import { b } from "../../dev/b.ts";' }, "../../dev/b.ts"],
    [arrowsFall, { "proto/gen/a.ts": 'import { b } from "../../libs/b.ts";' }, "../../libs/b.ts"],
    [arrowsFall, { "services/vault/a.ts": 'import { b } from "./main.ts";' }, "./main.ts"],
    [
      rules["idea files do not import the contract"],
      { "services/vault/refresh.ts": 'import "#proto/a.ts";' },
      "proto/gen/a.ts",
    ],
    [oneDoor, { "services/vault/a.ts": 'import pg from "pg";' }, "pg"],
    [oneDoor, { "libs/a.ts": 'import { connect } from "node:http2";' }, "node:http2"],
    [oneDoor, { "libs/a.ts": 'import { createCipheriv as seal } from "node:crypto";' }, "createCipheriv"],
    [oneDoor, { "services/vault/a.ts": "export const level = process.env.LEVEL;" }, "process.env"],
    [
      noCircle,
      { "libs/a.ts": 'import "./b.ts";', "libs/b.ts": 'import type { A } from "./a.ts";' },
      "libs/b.ts -> libs/a.ts",
    ],
    [
      dependenciesDeclared({ dependencies: { pg: "1" }, devDependencies: { vitest: "1" } }),
      { "libs/a.ts": 'import "vitest"; import "pg";' },
      "vitest",
    ],
    [dependenciesDeclared({ dependencies: { pg: "1" }, devDependencies: {} }), { "test/a.ts": 'import "pg";' }, "pg"],
    [dependenciesDeclared({ dependencies: {}, devDependencies: {} }), { "dev/a.ts": 'import "@x/y/z";' }, "@x/y"],
    [importPaths, { "dev/a.ts": 'import "../libs/b.ts";', "libs/b.ts": "" }, "libs/b.ts"],
    [importPaths, { "libs/a.ts": 'import "#libs/b.ts";', "libs/b.ts": "" }, "#libs/b.ts"],
    [importPaths, { "libs/a.ts": 'import "./absent.ts";' }, "./absent.ts"],
    [filesInForm, { "libs/utils.ts": "" }, "utils.ts"],
    [filesInForm, { "libs/a.ts": "export default 1;" }, "default export"],
    [filesInForm, { "libs/a.ts": "\n".repeat(400) }, "lines"],
    [filesInForm, { "libs/a.ts": "!export const a = 1;" }, "comment"],
    [noPlaintext, { "services/proxy/main.ts": "startServer({ plaintextAddress: config.X });" }, "without TLS"],
    [nothingPrivate, { "dev/a.ts": `// ${home}` }, home.slice(0, 7)],
    [nothingPrivate, { "libs/a.ts": `const ${secret};` }, "secret"],
    [nothingPrivate, { "libs/a.ts": 'const a = { kind: "secret", help: "", default: "k" };' }, "default"],
  ])("%o %o", (rule, texts, named) => {
    const faults = rule(planted(texts));
    expect(faults).toHaveLength(1);
    expect(faults[0]).toContain(named);
  });

  test("and what is allowed is not", () => {
    const files = planted({
      "services/vault/main.ts": 'import { a } from "./a-service.ts"; import { b } from "#libs/b.ts";',
      "services/vault/a-service.ts": 'import { c } from "#proto/c.ts"; // import "../account/a.ts"',
      "services/vault/envelope.ts": 'import { createCipheriv } from "node:crypto";',
      "libs/b.ts": 'import { c } from "#proto/c.ts"; export const b = "import pg from \'pg\'";',
      "libs/config.ts": "export const level = process.env.LEVEL;",
      "proto/gen/c.ts": "",
      "test/d.ts": 'import { b } from "#libs/b.ts";',
    });
    const without = dependenciesDeclared({ dependencies: {}, devDependencies: {} });
    const all = { ...rules, "packages are declared where they are used": without };
    expect(Object.values(all).flatMap((rule) => rule(files))).toEqual([]);
  });
});

describe("in this repository", () => {
  const files = readSources(root, ["services", "libs", "migrations", "dev", "test", "proto/gen"]);

  test.each(Object.entries(rules))("%s", (_name, rule) => {
    expect(files.size).toBeGreaterThan(100);
    expect(rule(files)).toEqual([]);
  });
});
