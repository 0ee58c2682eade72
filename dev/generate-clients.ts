// `npm run generate:clients [python] [go]`: writes clients/<language>/gen from the protos, with each language's own
// generators. They are installed under .deputy/clients at the versions that requirements.txt and go.mod pin; nothing else
// on the machine changes, and a second run finds them there.
import { execFileSync, spawnSync } from "node:child_process";
import { globSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const toolsDirectory = join(root, ".deputy/clients");
const goTools = join(toolsDirectory, "go");
const pythonTools = join(toolsDirectory, "python");

/** A language that a client is generated for. */
export type Language = "python" | "go";

/** The languages that clients are generated for. */
export const languages: readonly Language[] = ["python", "go"];

/** The Python that has the generated client and what it needs. */
export const pythonExecutable = join(pythonTools, "bin/python");

const generators = { python: generatePython, go: generateGo };

// What to ask of the machine, and what the answer must look like. From 1.21 on, go fetches the newer toolchain that go.mod
// asks for by itself; older ones print nothing here.
const needs = {
  python: {
    probe: ["python3", "-c", "import ensurepip, sys; print(sys.version_info >= (3, 10))"],
    answer: /^True/,
    what: "Python 3.10 or newer with venv (Debian: python3 and python3-venv)",
  },
  go: { probe: ["go", "env", "GOTOOLCHAIN"], answer: /^\w/, what: "Go 1.21 or newer (https://go.dev/dl)" },
} as const;

/** What has to be installed before the client of a language can be generated; undefined when nothing is missing. */
export function missingToolchain(language: Language): string | undefined {
  const { probe, answer, what } = needs[language];
  const [command, ...args] = probe;
  const { stdout } = spawnSync(command, args, { encoding: "utf8" });
  return answer.test(stdout ?? "") ? undefined : `The ${language} client needs ${what} on the PATH.`;
}

/** Writes the client of a language. Downloads the generators when they are not there yet. */
function generateClient(language: Language): void {
  const missing = missingToolchain(language);
  if (missing !== undefined) throw new Error(missing);
  generators[language]();
}

function generatePython(): void {
  const target = join(root, "clients/python/gen");
  const requirements = join(root, "clients/python/requirements.txt");
  // Made anew when its Python is gone, as after an upgrade of the machine's.
  const works = spawnSync(pythonExecutable, ["-m", "pip", "--version"]).status === 0;
  if (!works) run("python3", ["-m", "venv", "--clear", pythonTools]);
  run(pythonExecutable, [
    "-m",
    "pip",
    "install",
    "--quiet",
    "--disable-pip-version-check",
    "--requirement",
    requirements,
  ]);
  rmSync(target, { recursive: true, force: true });
  mkdirSync(target, { recursive: true });
  // grpc_tools is protoc with the Python generators built in. The rules for requests come along: Python imports what a
  // proto imports.
  const protos = globSync(["deputy/**/*.proto", "buf/**/*.proto"], { cwd: join(root, "proto") }).sort();
  const outputs = ["--python_out", "--pyi_out", "--grpc_python_out"].map((option) => `${option}=${target}`);
  run(pythonExecutable, ["-m", "grpc_tools.protoc", "--proto_path=proto", ...outputs, ...protos]);
  // Puts the generated packages on this Python's path, so that `import deputy...` works without a setting.
  const site = ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"];
  writeFileSync(
    join(execFileSync(pythonExecutable, site, { encoding: "utf8" }).trim(), "deputy-client.pth"),
    `${target}\n`,
  );
}

function generateGo(): void {
  const env = { ...process.env, GOBIN: goTools };
  run("go", ["install", "tool"], { cwd: join(root, "clients/go"), env });
  run(join(root, "node_modules/.bin/buf"), ["generate", "--template", "clients/buf.gen.yaml"]);
}

function run(command: string, args: readonly string[], options: { cwd?: string; env?: NodeJS.ProcessEnv } = {}): void {
  execFileSync(command, args, { cwd: root, stdio: "inherit", ...options });
}

if (import.meta.main) {
  const asked = process.argv.slice(2);
  const unknown = asked.filter((name) => !languages.some((language) => language === name));
  try {
    if (unknown.length > 0) throw new Error(`No client for ${unknown.join(", ")}: there are ${languages.join(", ")}.`);
    for (const language of languages.filter((name) => asked.length === 0 || asked.includes(name))) {
      generateClient(language);
      console.log(`clients/${language}/gen is written.`);
    }
  } catch (error) {
    console.error((error as Error).message);
    process.exitCode = 1;
  }
}
