// The command for receipts, offline: it needs the vault's public key and nothing of the vault.
//   node services/vault/receipt-command.ts public-key PRIVATE_KEY_FILE      prints the key that others verify with
//   node services/vault/receipt-command.ts verify FILE --key PUBLIC_KEY     says what each receipt proves, or why it is none
//   node services/vault/receipt-command.ts requests FILE --key PUBLIC_KEY   prints DestroyCredentials requests, to destroy
//                                                                           again what a restored backup has brought back
// FILE has one receipt (its `jws`) on each line.
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { publicJwk, readPublicKey, readSigningKey } from "#libs/signing-key.ts";
import { type Receipt, receiptVerifier } from "./receipts.ts";

/** What a command prints, and whether all was well. */
interface Output {
  readonly text: string;
  readonly good: boolean;
}

type Verified = ({ readonly receipt: Receipt } | { readonly fault: string }) & { readonly line: number };

// As many as one call takes.
const maxAccounts = 1_000;

const usage =
  "usage: node services/vault/receipt-command.ts public-key PRIVATE_KEY_FILE | verify|requests FILE --key PUBLIC_KEY [--key ...]";

/** Runs a command. */
export async function runReceiptCommand(parameters: readonly string[]): Promise<Output> {
  const { positionals, values } = parseArgs({
    args: [...parameters],
    options: { key: { type: "string", multiple: true } },
    allowPositionals: true,
  });
  const [command, file = ""] = positionals;
  if (command === "public-key" && file !== "") {
    const key = publicJwk(await readSigningKey(file, await readFile(file, "utf8")));
    return { text: `${JSON.stringify(key)}\n`, good: true };
  }
  if ((command !== "verify" && command !== "requests") || file === "" || values.key === undefined) {
    throw new Error(usage);
  }
  const verified = await verifyFile(file, values.key);
  if (verified.length === 0) throw new Error(`${file} holds no receipts`);
  if (command === "verify") return report(verified);
  const bad = verified.filter((one) => "fault" in one);
  // Nothing is done by halves: who restores has to know that the list is whole.
  if (bad.length > 0) return report(bad);
  return { text: requests(verified.flatMap((one) => ("receipt" in one ? one.receipt : []))), good: true };
}

async function verifyFile(file: string, keyFiles: readonly string[]): Promise<readonly Verified[]> {
  const keys = keyFiles.map(async (keyFile) => readPublicKey(keyFile, await readFile(keyFile, "utf8")));
  const verify = receiptVerifier(await Promise.all(keys));
  const lines = (await readFile(file, "utf8"))
    .split("\n")
    .map((text, index) => ({ text: text.trim(), line: index + 1 }));
  const filled = lines.filter(({ text }) => text !== "");
  return Promise.all(filled.map(async ({ text, line }) => ({ ...(await verify(text)), line })));
}

function report(verified: readonly Verified[]): Output {
  const lines = verified.map((one) =>
    "receipt" in one ? describe(one.receipt) : `line ${one.line}: BAD: ${one.fault}`,
  );
  const bad = verified.filter((one) => "fault" in one).length;
  return { text: [...lines, `${verified.length - bad} good, ${bad} bad`, ""].join("\n"), good: bad === 0 };
}

function describe(receipt: Receipt): string {
  const issueTime = new Date(receipt.iat * 1000).toISOString();
  return [
    `${receipt.account_id} of ${JSON.stringify(receipt.external_user_id)}, ${receipt.app_slug}`,
    `${receipt.project_id} ${receipt.environment}`,
    `destroyed ${receipt.destroy_time}: ${receipt.destroyed.join(" ") || "unreadable"}, generation ${receipt.generation}`,
    `provider ${receipt.provider_revocation} as of ${issueTime}`,
  ].join("; ");
}

/** One request a line, for `buf curl -d`. */
function requests(receipts: readonly Receipt[]): string {
  const environments = Map.groupBy(receipts, ({ project_id, environment }) =>
    JSON.stringify([project_id, environment]),
  );
  const lines = [...environments.values()].flatMap((group) => {
    const accountIds = [...new Set(group.map(({ account_id }) => account_id))];
    const starts = Array.from(
      { length: Math.ceil(accountIds.length / maxAccounts) },
      (_, index) => index * maxAccounts,
    );
    return starts.map((from) => ({
      project_id: group[0]?.project_id,
      environment: `ENVIRONMENT_${group[0]?.environment.toUpperCase()}`,
      account_ids: accountIds.slice(from, from + maxAccounts),
    }));
  });
  return lines.map((line) => `${JSON.stringify(line)}\n`).join("");
}

if (import.meta.main) {
  try {
    const { text, good } = await runReceiptCommand(process.argv.slice(2));
    process.stdout.write(text);
    if (!good) process.exitCode = 1;
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n`);
    process.exitCode = 1;
  }
}
