// Runs before `npm start`, `npm test` and the like, under whatever Node the machine has: installs the locked packages, the
// pinned Node among them, when they are missing or older than the lock file. Plain old JavaScript on purpose.
const { spawnSync } = require("node:child_process");
const { statSync } = require("node:fs");
const { join } = require("node:path");

const root = join(__dirname, "..");
const changedMs = (path) => statSync(join(root, path), { throwIfNoEntry: false })?.mtimeMs ?? 0;

if (changedMs("node_modules/.package-lock.json") < changedMs("package-lock.json")) {
  console.log("Installing packages (once, about half a minute) ...");
  const { status } = spawnSync("npm", ["ci", "--no-audit", "--no-fund"], { cwd: root, stdio: "inherit" });
  if (status !== 0) {
    console.error("npm ci failed: see above.");
    process.exit(1);
  }
}
