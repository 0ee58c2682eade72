// `npm run compose:secrets`: what docker-compose.yml mounts: certificates of an authority of its own, passwords, the keys that
// access tokens and receipts are signed with, and the vault's keyring. Made once; what is there is kept. Guard deploy/secrets like the data itself:
// without keyring.json nothing in the vault can ever be read again.
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createKeyringFile } from "../services/vault/keyring.ts";
import { ensureCertificates } from "./certificates.ts";
import { ensurePassword, ensureSigningKey } from "./state.ts";

const root = join(import.meta.dirname, "..");
const directory = join(root, "deploy/secrets");
const services = ["account", "vault", "proxy", "gateway", "operator"];

await mkdir(directory, { recursive: true, mode: 0o700 });
await ensureCertificates({
  directory: join(directory, "certificates"),
  trustDomain: "deputy.internal",
  services,
  hosts: services,
});
for (const role of ["account", "account-owner", "vault", "vault-owner"]) {
  await ensurePassword(join(directory, `${role}-password`));
}
// The Postgres image reads it as a user of its own; on this machine the folder keeps it from others.
await ensurePassword(join(directory, "postgres-password"), 0o644);
for (const name of ["token-key", "vault-signing-key"]) await ensureSigningKey(join(directory, `${name}.pem`));
// Sealed refreshed tokens for the time in which the database does not take them.
await mkdir(join(root, "deploy/spool"), { recursive: true, mode: 0o700 });
const keyring = join(directory, "keyring.json");
if (!existsSync(keyring)) await createKeyringFile({ path: keyring, now: Date.now });
// The containers read these files as the user who owns them.
if (!existsSync(join(root, ".env"))) await writeFile(join(root, ".env"), `DEPUTY_UID=${process.getuid?.() ?? 1000}\n`);
console.log(`${directory} is ready: docker compose up -d --build`);
