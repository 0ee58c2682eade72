// `npm run check`: everything that must hold before a change lands and that no test shows. All steps run, one line each, and
// what a failed one printed stands at the end. `npm run contract:land` (`--land-contract`) makes the contract of today the
// one that later changes are held against; a change that breaks its clients is refused.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { licenceFaults, type PackageLock, versionFaults } from "./dependencies.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const landed = "proto/landed.binpb";

// Faults in these were fixed in these versions: below them a flood of resets, or a response, ends or hangs the process.
const versionFloors = { "@grpc/grpc-js": "1.14.4", undici: "7.24.0" };

const allowedLicences = new Set([
  "0BSD",
  "Apache-2.0",
  "BlueOak-1.0.0",
  "BSD-2-Clause",
  "BSD-3-Clause",
  "CC0-1.0",
  "ISC",
  "MIT",
  "MPL-2.0",
  "Python-2.0",
]);

interface Step {
  readonly name: string;
  /** Gives what is wrong; nothing when all is well. */
  readonly run: () => Promise<string>;
}

/** Runs a program of node_modules, or of Node itself, and gives what it printed if it failed. */
function command(program: string, ...args: readonly string[]): () => Promise<string> {
  const file = program === "node" ? process.execPath : join(root, "node_modules/.bin", program);
  // The programs of node_modules run by `env node`: this makes it the one that runs now.
  const path = `${dirname(process.execPath)}:${process.env.PATH ?? ""}`;
  return () =>
    new Promise((resolve, reject) => {
      const child = spawn(file, args, { cwd: root, env: { ...process.env, PATH: path, NO_COLOR: "1" } });
      let output = "";
      for (const stream of [child.stdout, child.stderr])
        stream.setEncoding("utf8").on("data", (text) => (output += text));
      child.on("error", reject);
      child.on("close", (code) =>
        resolve(code === 0 ? "" : output || `${program} ended with ${code} and said nothing`),
      );
    });
}

function packageLock(): PackageLock {
  return JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
}

const breaking = command("buf", "breaking", "proto", "--against", landed);

const steps: readonly Step[] = [
  { name: "types", run: command("tsc", "-p", "tsconfig.json") },
  { name: "format and lint", run: command("biome", "ci", "--colors=off", ".") },
  { name: "house rules", run: command("vitest", "run", "test/house.test.ts", "test/proto.test.ts") },
  { name: "contract: lint", run: command("buf", "lint") },
  { name: "contract: format", run: command("buf", "format", "-d", "--exit-code", "--path", "proto/deputy") },
  {
    name: "contract: no break",
    run: async () => (existsSync(join(root, landed)) ? breaking() : `${landed} is missing: run npm run contract:land`),
  },
  { name: "generated code", run: command("node", "dev/generate.ts", "--check") },
  { name: "settings page", run: command("node", "dev/document-settings.ts", "--check") },
  { name: "versions", run: async () => versionFaults(packageLock(), versionFloors).join("\n") },
  { name: "licences", run: async () => licenceFaults(packageLock(), allowedLicences).join("\n") },
];

async function check(): Promise<void> {
  const failed: string[] = [];
  for (const { name, run } of steps) {
    const startMs = performance.now();
    const fault = await run();
    const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
    console.log(`${fault === "" ? "ok    " : "FAILED"} ${name} (${seconds} s)`);
    if (fault !== "") failed.push(`--- ${name}\n${fault.trimEnd()}\n`);
  }
  if (failed.length > 0) process.exitCode = 1;
  const summary = failed.length === 0 ? "all checks passed" : `${failed.length} of ${steps.length} checks failed`;
  console.log([...(failed.length === 0 ? [] : ["", ...failed]), summary].join("\n"));
}

async function landContract(): Promise<void> {
  const fault = existsSync(join(root, landed)) ? await breaking() : "";
  const failure = fault || (await command("buf", "build", "--exclude-source-info", "-o", landed)());
  if (failure !== "") process.exitCode = 1;
  console.log(failure === "" ? `${landed} is the contract of today: commit it` : `not landed:\n${failure.trimEnd()}`);
}

await (process.argv.includes("--land-contract") ? landContract() : check());
