// What the local stack keeps in its state directory: databases, certificates, keys, passwords, the catalog with the real
// ports, logs. Made at the first start, found again at every other; all of it can be deleted to begin anew.
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { createKeyringFile } from "../services/vault/keyring.ts";
import { type CertificateFiles, ensureCertificates } from "./certificates.ts";
import { listeners, type Ports } from "./ports.ts";
import { writePrivateFile } from "./private-file.ts";

/** The trust domain of the local stack's certificates. */
export const trustDomain = "deputy.local";

/** Paths of what the state directory holds. */
export interface State {
  readonly directory: string;
  readonly postgres: string;
  readonly certificates: CertificateFiles;
  readonly catalog: string;
  readonly sandbox: string;
  readonly spool: string;
  readonly logs: string;
  readonly compileCache: string;
  readonly connectionFile: string;
  readonly shellFile: string;
  readonly keyringFile: string;
  readonly tokenKeyFile: string;
  readonly vaultSigningKeyFile: string;
  readonly passwordFiles: Readonly<
    Record<"account" | "account-owner" | "vault" | "vault-owner" | "sandbox-client", string>
  >;
}

/** Makes what is missing. Throws one sentence when the directory cannot be used. */
export async function prepareState(directory: string, ports: Ports): Promise<State> {
  const at = (...path: string[]) => join(resolve(directory), ...path);
  // Postgres runs under another user when started by root, and must get through to its own folder.
  await mkdir(at(), { recursive: true, mode: 0o711 }).catch((error: NodeJS.ErrnoException) => {
    throw new Error(`${at()} cannot be made (${error.code}). Set DEPUTY_STATE_DIRECTORY to a folder you may write to.`);
  });
  const isNew = !existsSync(at("postgres"));
  for (const folder of ["secrets", "sandbox", "logs"]) await makeFolder(at(folder));
  const certificates = await ensureCertificates({
    directory: at("certificates"),
    trustDomain,
    services: ["account", "vault", "proxy", "gateway", "operator", "sandbox"],
  });
  const secret = (name: string) => at("secrets", name);
  const state: State = {
    directory: at(),
    postgres: at("postgres"),
    certificates,
    catalog: at("catalog"),
    sandbox: at("sandbox"),
    spool: at("spool"),
    logs: at("logs"),
    compileCache: at("compile-cache"),
    connectionFile: at("connection.json"),
    shellFile: at("env"),
    keyringFile: secret("keyring.json"),
    tokenKeyFile: secret("token-key.pem"),
    vaultSigningKeyFile: secret("vault-signing-key.pem"),
    passwordFiles: {
      account: secret("account-password"),
      "account-owner": secret("account-owner-password"),
      vault: secret("vault-password"),
      "vault-owner": secret("vault-owner-password"),
      "sandbox-client": secret("sandbox-client-secret"),
    },
  };
  for (const file of Object.values(state.passwordFiles)) await ensurePassword(file);
  for (const file of [state.tokenKeyFile, state.vaultSigningKeyFile]) await ensureSigningKey(file);
  // Never beside data that an earlier key has sealed: the vault then says that it is sealed.
  if (isNew && !existsSync(state.keyringFile)) await createKeyringFile({ path: state.keyringFile, now: Date.now });
  await writeCatalog(state.catalog, ports.sandbox);
  return state;
}

/** Makes a random password unless the file is there. */
export async function ensurePassword(file: string, mode = 0o600): Promise<void> {
  if (!existsSync(file)) await writePrivateFile(file, randomBytes(32).toString("base64url"), mode);
}

/** Makes an Ed25519 key to sign with unless the file is there. */
export async function ensureSigningKey(file: string): Promise<void> {
  if (existsSync(file)) return;
  const { privateKey } = generateKeyPairSync("ed25519");
  await writePrivateFile(file, privateKey.export({ type: "pkcs8", format: "pem" }).toString());
}

async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true, mode: 0o700 }).catch((error: NodeJS.ErrnoException) => {
    throw new Error(`${path} cannot be made (${error.code}): check the owner and the permissions of that folder.`);
  });
}

/** The catalog with the sandbox's real port in place of the default one. */
async function writeCatalog(target: string, sandboxPort: number): Promise<void> {
  await rm(target, { recursive: true, force: true });
  await cp(join(import.meta.dirname, "../catalog"), target, { recursive: true });
  for (const file of await readdir(target)) {
    const text = await readFile(join(target, file), "utf8");
    await writeFile(join(target, file), text.replaceAll(String(listeners.sandbox.port), String(sandboxPort)));
  }
}

/** Reads a file that `prepareState` made. */
export function readSecret(file: string): string {
  return readFileSync(file, "utf8").trimEnd();
}
