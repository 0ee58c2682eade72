// The flags that every service runs with, where it is a child of the local stack and where it is a container.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { serviceFlags, startChild } from "../../dev/child.ts";

const root = join(import.meta.dirname, "../..");
const probe = `console.log("proto " + ("__proto__" in {}));`;

/** What Node is told by the image, whatever command a container runs. */
function imageOptions(): string {
  const dockerfile = readFileSync(join(root, "Dockerfile"), "utf8");
  return /^ENV NODE_OPTIONS="(.*)"$/m.exec(dockerfile)?.[1] ?? "";
}

it("a child of the local stack has no __proto__, and no signal opens a debugger in it", async () => {
  const directory = await mkdtemp(join(tmpdir(), "deputy-flags-"));
  const file = join(directory, "probe.mjs");
  await writeFile(file, `${probe} setInterval(() => console.log("alive"), 50);`);
  const child = startChild({ name: "probe", file, settings: {}, logDirectory: directory, cacheDirectory: directory });
  try {
    const log = () => readFileSync(child.logFile, "utf8");
    await expect.poll(log, { timeout: 10_000 }).toContain("proto false");
    const lines = log().split("\n").length;
    child.process.kill("SIGUSR1");
    // A debugger would be announced before the second line.
    await expect.poll(() => log().split("\n").length, { timeout: 5000 }).toBeGreaterThan(lines + 10);
    expect(log()).not.toContain("Debugger listening");
  } finally {
    await child.stop();
    await rm(directory, { recursive: true });
  }
});

it("a container has the same flags, and nothing in the compose file takes them away", () => {
  const env = { NODE_OPTIONS: imageOptions() };
  expect(execFileSync(process.execPath, ["-e", probe], { env, encoding: "utf8" })).toBe("proto false\n");
  expect(imageOptions().split(" ")).toEqual(serviceFlags);
  expect(readFileSync(join(root, "docker-compose.yml"), "utf8")).not.toContain("NODE_OPTIONS");
});
