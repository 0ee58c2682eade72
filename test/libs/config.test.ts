// The table of settings: every kind, every fault, all faults at once, and what the command line prints.
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { inspect } from "node:util";
import { afterAll, describe, expect, test } from "vitest";
import { describeSettings, parseConfig, type Settings } from "#libs/config.ts";
import type { Secret } from "#libs/secret.ts";

const directory = mkdtempSync(join(tmpdir(), "deputy-config-"));
const file = join(directory, "value");
writeFileSync(file, "s3cret\n");
afterAll(() => rmSync(directory, { recursive: true }));

type Kind = Settings[string]["kind"];

/** What one setting of a kind becomes. */
function read(kind: Kind, text: string | undefined, otherwise?: string): unknown {
  const setting = { kind, help: "What it is for.", ...(otherwise !== undefined && { default: otherwise }) };
  const result = parseConfig({ X: setting } as Settings, text === undefined ? {} : { X: text });
  return result.kind === "config" ? result.config.X : result.faults;
}

describe("a setting", () => {
  test.each<[Kind, string, unknown]>([
    ["text", "a b", "a b"],
    ["list", "a, b,,c ", ["a", "b", "c"]],
    ["integer", "-12", -12],
    ["boolean", "true", true],
    ["boolean", "false", false],
    ["duration", "500ms", 500],
    ["duration", "30s", 30_000],
    ["duration", "5m", 300_000],
    ["duration", "2h", 7_200_000],
    ["duration", "7d", 604_800_000],
    ["address", "127.0.0.1:7001", "127.0.0.1:7001"],
    ["address", "[::1]:7001", "[::1]:7001"],
    ["url", "http://127.0.0.1:7400", "http://127.0.0.1:7400"],
    ["path", "some/where", "some/where"],
    ["file", file, "s3cret\n"],
  ])("of kind %s reads %s", (kind, text, value) => {
    expect(read(kind, text)).toEqual(value);
  });

  test("of kind secret reads the file to its last line end, and cannot be printed", () => {
    const config = { X: read("secret", file) as Secret };
    expect(config.X.reveal()).toBe("s3cret");
    for (const shown of [inspect(config, { showHidden: true }), JSON.stringify(config), `${config.X}`]) {
      expect(shown).toContain("[secret]");
      expect(shown).not.toContain("s3cret");
    }
  });

  test.each<[Kind, string, string]>([
    ["text", "", "is empty"],
    ["integer", "1.5", "whole number"],
    ["integer", "0x10", "whole number"],
    ["boolean", "yes", "neither true nor false"],
    ["duration", "30", "not a duration"],
    ["duration", "-1s", "not a duration"],
    ["address", "7001", "not an address"],
    ["address", "host:70000", "not an address"],
    ["address", "a b:1", "not an address"],
    ["url", "nowhere", "not a URL"],
    ["file", "/nowhere/at/all", "/nowhere/at/all (ENOENT)"],
    ["secret", "/nowhere/at/all", "/nowhere/at/all (ENOENT)"],
  ])("of kind %s refuses %j", (kind, text, fault) => {
    expect(read(kind, text)).toEqual([expect.stringMatching(/^X /)]);
    expect(String(read(kind, text))).toContain(fault);
    expect(String(read(kind, text))).toContain("What it is for.");
  });

  test("takes its default, and is required without one", () => {
    expect(read("integer", undefined, "7")).toBe(7);
    expect(read("list", undefined, "")).toEqual([]);
    expect(read("file", "", "")).toBe("");
    expect((read("secret", undefined, "") as Secret).reveal()).toBe("");
    expect(String(read("integer", undefined))).toContain("X is required");
  });
});

const table = `{
  DEPUTY_PORT: { kind: "integer", help: "The port." },
  DEPUTY_URL: { kind: "url", default: "http://localhost", help: "The URL." },
  DEPUTY_FLAG: { kind: "boolean", default: "false", help: "A flag." },
}`;

/** Runs `readConfig` in a process of its own. */
function run(environment: Record<string, string>, ...args: string[]) {
  const lib = fileURLToPath(import.meta.resolve("#libs/config.ts"));
  const script = join(directory, "main.ts");
  writeFileSync(script, `import { readConfig } from "${lib}";\nconsole.log(JSON.stringify(readConfig(${table})));`);
  return new Promise<{ code: unknown; stdout: string; stderr: string }>((resolve) => {
    execFile(process.execPath, [script, ...args], { env: environment, timeout: 20_000 }, (error, stdout, stderr) =>
      resolve({ code: error?.code ?? 0, stdout, stderr }),
    );
  });
}

describe("a process", () => {
  test("starts with its settings", async () => {
    const { code, stdout } = await run({ DEPUTY_PORT: "1", DEPUTY_FLAG: "true" });
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toEqual({ DEPUTY_PORT: 1, DEPUTY_URL: "http://localhost", DEPUTY_FLAG: true });
  });

  test("does not start with faults and names them all at once", async () => {
    const { code, stdout, stderr } = await run({ DEPUTY_URL: "nowhere", DEPUTY_FLAG: "1" });
    expect(code).toBe(1);
    expect(stdout).toBe("");
    expect(
      stderr
        .trim()
        .split("\n")
        .map((line) => line.split(" ")[0]),
    ).toEqual(["DEPUTY_PORT", "DEPUTY_URL", "DEPUTY_FLAG"]);
  });

  test("prints the table when asked for help, whatever is set", async () => {
    const { code, stdout } = await run({}, "--help");
    expect(code).toBe(0);
    expect(stdout).toContain("DEPUTY_PORT  (integer, required)\n    The port.");
    expect(stdout).toContain("DEPUTY_URL  (url, default http://localhost)");
  });
});

test("an optional setting says so", () => {
  expect(describeSettings({ A: { kind: "file", default: "", help: "A file." } })).toContain("A  (file, optional)");
});
