// `npm run generate`: writes proto/gen from the protos: TypeScript by ts-proto, and the descriptor set that validation and
// reflection read. With `--check` it writes elsewhere and fails when what is committed is not current.
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

// ts-proto writes every file that a proto imports; these are only read at build time, by the annotations.
const unused = ["buf", "google/protobuf/descriptor.ts", "google/protobuf/field_mask.ts"];

function generate(target: string): void {
  const buf = (...args: string[]) =>
    execFileSync(join(root, "node_modules/.bin/buf"), args, { cwd: root, stdio: "inherit" });
  const template = readFileSync(join(root, "buf.gen.yaml"), "utf8").replace("out: proto/gen", `out: ${target}`);
  rmSync(target, { recursive: true, force: true });
  buf("generate", "--template", template);
  for (const path of unused) rmSync(join(target, path), { recursive: true });
  buf("build", "-o", join(target, "descriptors.binpb"), "--as-file-descriptor-set", "--exclude-source-info");
}

/** Names of files that differ between two folders, or are in one alone. */
function differences(left: string, right: string): readonly string[] {
  const files = (folder: string) =>
    existsSync(folder)
      ? readdirSync(folder, { recursive: true, withFileTypes: true }).flatMap((entry) =>
          entry.isFile() ? [join(entry.parentPath, entry.name).slice(folder.length + 1)] : [],
        )
      : [];
  const names = new Set([...files(left), ...files(right)]);
  const same = (name: string) =>
    [left, right].every((folder) => existsSync(join(folder, name))) &&
    readFileSync(join(left, name)).equals(readFileSync(join(right, name)));
  return [...names].filter((name) => !same(name));
}

if (process.argv.includes("--check")) {
  const fresh = mkdtempSync(join(tmpdir(), "deputy-gen-"));
  try {
    generate(fresh);
    const stale = differences(fresh, join(root, "proto/gen"));
    if (stale.length > 0) {
      console.error(`proto/gen is not current: run npm run generate. Differs in ${stale.join(", ")}`);
      process.exitCode = 1;
    }
  } finally {
    rmSync(fresh, { recursive: true });
  }
} else {
  generate(join(root, "proto/gen"));
}
