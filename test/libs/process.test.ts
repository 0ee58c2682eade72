// What a process writes and how it ends: the logger's second net under secrets, the stop in order, the loud death.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";

const directory = mkdtempSync(join(tmpdir(), "deputy-process-"));
const children: ChildProcess[] = [];
afterAll(() => {
  for (const child of children) child.kill("SIGKILL");
  rmSync(directory, { recursive: true });
});

function logged(fields: object): string {
  const lines: string[] = [];
  createLogger("vault", "info", { write: (line) => lines.push(line) }).info(fields, "line");
  return lines.join("");
}

describe("a log line", () => {
  test.each(["access_token", "authorization", "clientSecret", "code", "cookie", "refreshToken", "state", "token"])(
    "redacts %s, also one level down",
    (name) => {
      expect(logged({ [name]: "s3cret", response: { [name]: "s3cret" }, fine: "shown" })).not.toContain("s3cret");
      expect(logged({ [name]: "s3cret", fine: "shown" })).toContain("shown");
    },
  );

  test("shows of an error its message, code and causes, and no other property", () => {
    const cause = Object.assign(new Error("refused"), { code: "ECONNREFUSED", config: { body: "s3cret" } });
    const error = Object.assign(new StatusError("INTERNAL", "X", "broken", { cause }), { response: "s3cret" });
    const line = logged({ err: error });
    expect(line).not.toContain("s3cret");
    expect(JSON.parse(line)).toMatchObject({
      level: "info",
      service: "vault",
      err: { message: "broken", errorCode: "INTERNAL", cause: { message: "refused", errorCode: "ECONNREFUSED" } },
    });
    expect(logged({ err: "s3cret" })).not.toContain("s3cret");
  });
});

/** Runs a script that has a logger, in a process of its own. */
function run(body: string) {
  const lib = (name: string) => fileURLToPath(new URL(`../../libs/${name}.ts`, import.meta.url));
  const script = join(directory, `${children.length}.ts`);
  writeFileSync(
    script,
    `import { writeSync } from "node:fs";
import { createLogger } from "${lib("log")}";
import { dieLoudly, stopInOrder } from "${lib("process")}";
const log = createLogger("test", "info");
${body}`,
  );
  const child = spawn(process.execPath, [script]);
  children.push(child);
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text) => {
    output += text;
  });
  const lines = () =>
    output
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
  const ready = once(child.stdout, "data");
  const exit = once(child, "close") as Promise<[number]>;
  return { child, ready, exit, lines };
}

describe("a process", () => {
  test.each(["SIGTERM", "SIGINT"] as const)("on %s stops in order, once, past a failing step", async (signal) => {
    const { child, ready, exit, lines } = run(`
      const step = (name) => async (timeoutMs) => {
        await new Promise((resolve) => setTimeout(resolve, 100));
        writeSync(1, JSON.stringify({ step: name, timeoutMs }) + "\\n");
      };
      stopInOrder(log, step("first"), () => { throw new Error("second"); }, step("third"));
      setInterval(() => undefined, 1000);
      log.info("ready");`);
    await ready;
    child.kill(signal);
    // Apart, because the system makes one of two that come together.
    await sleep(50);
    child.kill(signal);
    expect(await exit).toEqual([0, null]);
    const steps = lines().filter((line) => line.step !== undefined);
    expect(steps.map(({ step }) => step)).toEqual(["first", "third"]);
    expect(steps[0].timeoutMs).toBeGreaterThan(30_000);
    // The logger writes in the background, so at the end of a process its lines may change places; none may be missing.
    const messages = lines().flatMap(({ msg }) => msg ?? []);
    expect(messages.sort()).toEqual(["a step of the stop failed", "draining", "ready", "stopped"]);
  });

  test.each([
    ["an error that nobody caught", 'setTimeout(() => { throw new Error("lost"); }, 10);'],
    ["a rejection that nobody handled", 'Promise.reject(new Error("lost"));'],
  ])("dies of %s, with a line that says so", async (_name, fault) => {
    const { exit, lines } = run(`dieLoudly(log);\nsetInterval(() => undefined, 1000);\n${fault}`);
    expect(await exit).toEqual([1, null]);
    expect(lines()).toMatchObject([{ level: "fatal", msg: "uncaught", err: { message: "lost" } }]);
  });
});
