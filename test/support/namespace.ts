// Programs of tests that run in a network namespace of their own, where the machine allows one.
import { execFile, execFileSync } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";

/** How this machine makes a network namespace: as root, else as root of a user namespace. */
const unshare = [["--net"], ["--net", "--map-root-user"]].find((flags) => {
  try {
    execFileSync("unshare", [...flags, "ip", "link", "set", "lo", "up"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
});

/** Whether there can be none, and what to say of it in a test's name. */
export const isWithoutNamespaces = unshare === undefined;
export const namespaceReason = isWithoutNamespaces
  ? " (skipped: this machine lets nobody make a network namespace)"
  : "";

/** Runs a file of this folder in a namespace, and gives the JSON that it prints. */
export async function inNamespace<Report>(file: string): Promise<Report> {
  const program = [process.execPath, join(import.meta.dirname, file)];
  const options = { timeout: 100_000, maxBuffer: 1 << 24 };
  const { stdout } = await promisify(execFile)("unshare", [...(unshare ?? []), ...program], options);
  return JSON.parse(stdout) as Report;
}
