// The operator's command for the audit:
//   node services/vault/audit-command.ts export > audit.jsonl
//   node services/vault/audit-command.ts verify audit.jsonl --key signing-key.pub.pem [--head NUMBER:HASH]
// `export` reads the database by the vault's settings. `verify` needs neither database nor network; it ends with status 1 and
// names the first thing that is wrong.
import { once } from "node:events";
import { open, readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { readConfig } from "#libs/config.ts";
import { readPublicKey } from "#libs/signing-key.ts";
import { dumpAudit } from "./audit-dump.ts";
import { type AuditVerdict, type KnownHead, verifyAudit } from "./audit-verify.ts";
import { openVaultDatabase } from "./schema.ts";

const usage = `usage: node services/vault/audit-command.ts export
       node services/vault/audit-command.ts verify FILE --key FILE [--key FILE ...] [--head NUMBER:HASH]`;

// A transaction that reads everything may pause for as long as a slow disk takes what it gives.
const statementTimeoutMs = 10 * 60_000;

/** Verifies a dump and gives the verdict for people. */
export async function runVerify(
  parameters: readonly string[],
): Promise<{ readonly text: string; readonly ok: boolean }> {
  const options = { key: { type: "string", multiple: true }, head: { type: "string" } } as const;
  const { values, positionals } = parseArgs({ args: [...parameters], options, allowPositionals: true });
  const [path] = positionals;
  if (path === undefined || positionals.length > 1 || values.key === undefined) throw new Error(usage);
  const keys = await Promise.all(values.key.map(async (file) => readPublicKey(file, await readFile(file, "utf8"))));
  const known = values.head === undefined ? undefined : readHead(values.head);
  const file = await open(path);
  const verdict = await verifyAudit(file.readLines(), keys, known);
  return { text: describe(verdict), ok: verdict.kind === "sound" };
}

function readHead(text: string): KnownHead {
  const [, number, hash] = /^([1-9]\d*):([0-9a-f]{64})$/.exec(text) ?? [];
  if (number === undefined || hash === undefined) throw new Error("--head: is not NUMBER:HASH");
  return { number: BigInt(number), hash };
}

function describe(verdict: AuditVerdict): string {
  if (verdict.kind === "broken") return `BROKEN: ${verdict.fault}`;
  const { entries, checkpoints, unsealed, head, time } = verdict;
  const sealed =
    head === undefined || time === undefined
      ? "no checkpoints"
      : `${entries} entries in ${checkpoints} checkpoints, valid to ${time.toISOString()}, head ${head.number}:${head.hash}`;
  return unsealed === 0 ? sealed : `${sealed}; ${unsealed} newer entries are not sealed yet`;
}

async function runExport(): Promise<void> {
  const config = readConfig({
    DEPUTY_DATABASE_URL: { kind: "url", help: "The vault's database, as its runtime role, without the password." },
    DEPUTY_DATABASE_PASSWORD_FILE: { kind: "secret", help: "That role's password." },
  });
  const db = openVaultDatabase({
    url: config.DEPUTY_DATABASE_URL,
    password: config.DEPUTY_DATABASE_PASSWORD_FILE,
    applicationName: "deputy-audit",
    statementTimeoutMs,
    maxConnections: 1,
  });
  try {
    for await (const line of dumpAudit(db)) {
      if (!process.stdout.write(`${JSON.stringify(line)}\n`)) await once(process.stdout, "drain");
    }
  } finally {
    await db.destroy();
  }
}

if (import.meta.main) {
  const [command, ...parameters] = process.argv.slice(2);
  try {
    if (command === "export") await runExport();
    else if (command === "verify") {
      const { text, ok } = await runVerify(parameters);
      process.stdout.write(`${text}\n`);
      if (!ok) process.exitCode = 1;
    } else throw new Error(usage);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n`);
    process.exitCode = 1;
  }
}
