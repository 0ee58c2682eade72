// Writes docs/configuration.md from the tables on top of each main.ts, as `--help` prints them; with `--check` it fails when
// the page is not current. Part of `npm run generate`.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const page = join(root, "docs/configuration.md");

const commands = [
  ["AccountService", "services/account/main.ts"],
  ["CredentialVault", "services/vault/main.ts"],
  ["ProxyService", "services/proxy/main.ts"],
  ["ProxyService, several processes", "services/proxy/cluster.ts"],
  ["gateway", "services/gateway/main.ts"],
  ["databases and roles", "migrations/databases.ts"],
  ["schema of deputy_account", "migrations/migrate.ts account"],
  ["schema of deputy_vault", "migrations/migrate.ts vault"],
  ["npm start", "dev/start.ts"],
] as const;

const head = `# Configuration

Every setting is an environment variable. What holds a secret is the path of a file. Durations are written \`500ms\`, \`30s\`,
\`5m\`, \`2h\`, \`7d\`; lists are separated by commas. This page is written by \`npm run generate\` from the tables in the code.
`;

function section([title, command]: readonly [string, string]): string {
  const help = execFileSync(process.execPath, [...command.split(" "), "--help"], { encoding: "utf8", cwd: root });
  const settings = [...help.matchAll(/^(DEPUTY_\w+) {2}\((\w+), (required|optional|default .*)\)\n {4}(.*)$/gm)];
  if (settings.length === 0) throw new Error(`${command} --help printed no settings`);
  const rows = settings.map(([, name, kind, state, text]) => `| \`${name}\` | ${kind} | ${state} | ${text} |`);
  return [`\n## ${title}: \`${command}\`\n`, "| setting | kind | | |", "| --- | --- | --- | --- |", ...rows, ""].join(
    "\n",
  );
}

const text = head + commands.map(section).join("");
if (!process.argv.includes("--check")) writeFileSync(page, text);
else if (readFileSync(page, "utf8") !== text) {
  console.error("docs/configuration.md is not current: run npm run generate");
  process.exitCode = 1;
}
