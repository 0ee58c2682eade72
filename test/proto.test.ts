// The contract is held to its promise by `buf breaking` against an image, as `npm run check` runs it: shown on copies.
import { execFile } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = promisify(execFile);
const buf = join(root, "node_modules/.bin/buf");
let directory: string;

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "deputy-contract-"));
  cpSync(join(root, "buf.yaml"), join(directory, "buf.yaml"));
  cpSync(join(root, "proto"), join(directory, "proto"), { recursive: true });
  await run(buf, ["build", "--exclude-source-info", "-o", "landed.binpb"], { cwd: directory });
});

afterAll(() => rmSync(directory, { recursive: true }));

/** What `buf breaking` says of the contract with one text in the place of another. */
async function breaks(text: string | RegExp, replacement: string): Promise<string> {
  const path = join(directory, "proto/deputy/proxy/v1/proxy_service.proto");
  const whole = readFileSync(path, "utf8");
  const changed = whole.replace(text, replacement);
  expect(changed).not.toBe(whole);
  writeFileSync(path, changed);
  try {
    const found = await run(buf, ["breaking", "proto", "--against", "landed.binpb"], { cwd: directory }).then(
      () => "",
      ({ stdout }: { stdout: string }) => stdout,
    );
    return found;
  } finally {
    writeFileSync(path, whole);
  }
}

test("the contract as it is does not break itself, nor does a new field", async () => {
  expect(await breaks("string account_id = 4;", "string account_id = 4; string more = 99;")).toBe("");
});

test.each([
  ["a removed field", / {2}string url = 6;\n/, "", "url"],
  ["a renumbered field", "string url = 6;", "string url = 16;", "url"],
  ["a changed type", "string url = 6;", "bytes url = 6;", "url"],
  ["a removed method", / {2}rpc Forward\(.*\n/, "", "Forward"],
  ["a request that becomes a stream", "rpc Forward(ForwardRequest)", "rpc Forward(stream ForwardRequest)", "Forward"],
])("%s is found", async (_name, text, replacement, named) => {
  expect(await breaks(text, replacement)).toContain(named);
});
