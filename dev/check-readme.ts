// `npm run check:readme`: starts the stack as the README says and runs every `sh` block of it as written, in one shell, in
// order. Fails at the first command that fails. Left out is what has a check of its own: starting, testing, checking.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const elsewhere = new Set(["npm start", "npm test", "npm run check"]);

const blocks = [...readFileSync(join(root, "README.md"), "utf8").matchAll(/^```sh\n([\s\S]*?)^```$/gm)];
const commands = blocks
  .flatMap(([, block = ""]) => block.split("\n"))
  .filter((line) => line !== "" && !elsewhere.has(line));
// Each line is shown before it runs; a command that prints nothing where an answer is expected shows in the log.
const script = [
  "set -euo pipefail",
  ...commands.flatMap((line) => [`printf '%s\\n' ${quote(`$ ${line}`)}`, line, "echo"]),
].join("\n");

const start = spawn("npm", ["start"], { cwd: root, stdio: ["ignore", "pipe", "inherit"], detached: true });
try {
  await ready();
  execFileSync("bash", ["-c", script], { cwd: root, stdio: "inherit", timeout: 300_000 });
  console.log(`README: ${commands.length} commands run as written`);
} catch (error) {
  console.error(`README: ${(error as Error).message.split("\n")[0]?.slice(0, 200)}`);
  process.exitCode = 1;
} finally {
  if (start.exitCode === null && start.pid !== undefined) {
    process.kill(-start.pid, "SIGINT");
    await once(start, "exit");
  }
}

async function ready(): Promise<void> {
  let output = "";
  for await (const chunk of start.stdout.iterator({ destroyOnReturn: false })) {
    output += chunk;
    if (output.endsWith("ready\n")) break;
  }
  // What comes later is of no use, but must not fill the pipe.
  start.stdout.resume();
  if (!output.endsWith("ready\n")) throw new Error("npm start ended before it was ready");
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
