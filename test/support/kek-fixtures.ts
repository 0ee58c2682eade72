// The four KEK providers as a vault opens them, by settings, each with what a test does to the place where its keys live. The
// remote ones speak to fake-kms.ts with the credentials that their standard chains find, and with a proxy in the environment
// that nobody listens on.
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Config, parseConfig } from "#libs/config.ts";
import { openEgress } from "#libs/egress.ts";
import { kekSettings, openKekProvider } from "../../services/vault/kek-provider.ts";
import type { KekProvider } from "../../services/vault/keyring.ts";
import { type Dialect, type FakeKms, startFakeKms } from "./fake-kms.ts";
import { awsDialect, googleDialect, transitDialect } from "./fake-kms-dialects.ts";

/** Long enough for a busy machine, short enough to wait for. */
export const testTimes = { attemptMs: 1_500, totalMs: 2_500 };
export const transitToken = "hvs.token-of-the-tests";

/** A provider and the place of its keys. */
export interface KekFixture {
  /** As it is now: a rotation can mean other settings, and so a restart. */
  provider(): KekProvider;
  /** The id of the n-th KEK. */
  kekId(n: number): string;
  /** Makes a second KEK active. */
  rotate(): Promise<void>;
  /** Takes the first KEK away. */
  retire(): Promise<void>;
  /** Takes every right, or every key, away, and gives it back. */
  lock(): Promise<void>;
  unlock(): Promise<void>;
  stop(): Promise<void>;
}

/** One whose keys are in a service. */
export interface RemoteFixture extends KekFixture {
  readonly kms: FakeKms;
  readonly tokenFile: string;
}

function settings(values: Readonly<Record<string, string>>): Config<typeof kekSettings> {
  const result = parseConfig(kekSettings, values);
  if (result.kind === "faults") throw new Error(result.faults.join("\n"));
  return result.config;
}

/** Opens the provider that settings name, with times for tests. */
export function openByName(values: Readonly<Record<string, string>>): ReturnType<typeof openKekProvider> {
  return openKekProvider(settings(values), { now: () => performance.now(), times: testTimes });
}

/** The provider `file`. */
export async function fileFixture(): Promise<KekFixture> {
  const directory = await mkdtemp(join(tmpdir(), "deputy-kek-"));
  const path = join(directory, "keyring.json");
  const keys = [1, 2].map((n) => ({
    id: `kek_${n}`,
    createTime: "2026-01-01T00:00:00Z",
    key: randomBytes(32).toString("base64"),
  }));
  const write = (active: string, ids: readonly string[]) =>
    writeFile(path, JSON.stringify({ active, keys: keys.filter(({ id }) => ids.includes(id)) }), { mode: 0o600 });
  await write("kek_1", ["kek_1"]);
  const { provider } = await openByName({ DEPUTY_KEYRING_FILE: path });
  return {
    provider: () => provider,
    kekId: (n) => `kek_${n}`,
    rotate: () => write("kek_2", ["kek_1", "kek_2"]),
    retire: () => write("kek_2", ["kek_2"]),
    lock: () => rename(path, `${path}.away`),
    unlock: () => rename(`${path}.away`, path),
    stop: () => rm(directory, { recursive: true }),
  };
}

async function remoteFixture(
  dialect: Dialect,
  kekId: (n: number) => string,
  values: (kekCount: number) => Readonly<Record<string, string>>,
): Promise<RemoteFixture> {
  const directory = await mkdtemp(join(tmpdir(), "deputy-kek-"));
  const tokenFile = join(directory, "token");
  const caFile = join(directory, "ca.pem");
  const kms = await startFakeKms(dialect);
  await writeFile(tokenFile, `${transitToken}\n`);
  await writeFile(caFile, kms.ca);
  const open = (kekCount: number) =>
    openByName({
      DEPUTY_KEK_ADDRESS: kms.url.href,
      DEPUTY_KEK_CA_FILE: caFile,
      DEPUTY_KEK_TOKEN_FILE: tokenFile,
      ...values(kekCount),
    });
  let opened = await open(1);
  return {
    kms,
    tokenFile,
    provider: () => opened.provider,
    kekId,
    async rotate() {
      kms.rotate();
      if (values(1).DEPUTY_KEK_KEYS === values(2).DEPUTY_KEK_KEYS) return;
      await opened.close();
      opened = await open(2);
    },
    retire: async () => kms.disable(1),
    lock: async () => kms.misbehave(() => "deny"),
    unlock: async () => kms.misbehave(() => undefined),
    async stop() {
      await opened.close();
      await kms.stop();
      await rm(directory, { recursive: true });
    },
  };
}

// No test asks a machine's own metadata service for credentials.
process.env.METADATA_SERVER_DETECTION = "none";
process.env.AWS_EC2_METADATA_DISABLED = "true";
// Nothing listens there: what went by the environment's proxy would not arrive.
for (const name of ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"]) process.env[name] = "http://127.0.0.1:1";

/** The provider `transit`; `token` is the one that the server takes. */
export function transitFixture(
  token: () => string = () => transitToken,
  alter: (dialect: Dialect) => Dialect = (dialect) => dialect,
): Promise<RemoteFixture> {
  return remoteFixture(
    alter(transitDialect(token)),
    (n) => `transit:transit/deputy:v${n}`,
    () => ({
      DEPUTY_KEK_PROVIDER: "transit",
      DEPUTY_KEK_KEYS: "transit/deputy",
    }),
  );
}

/** The provider `aws-kms`. */
export function awsFixture(): Promise<RemoteFixture> {
  process.env.AWS_ACCESS_KEY_ID = "AKIDEXAMPLE";
  process.env.AWS_SECRET_ACCESS_KEY = "secret-of-the-tests-secret-of-the-tests!";
  const arnOf = (n: number) => `arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-00000000000${n}`;
  // To rotate is to put another key in front.
  return remoteFixture(awsDialect(arnOf, "AKIDEXAMPLE"), arnOf, (kekCount) => ({
    DEPUTY_KEK_PROVIDER: "aws-kms",
    DEPUTY_KEK_KEYS: [2, 1]
      .slice(2 - kekCount)
      .map(arnOf)
      .join(","),
  }));
}

/** The provider `google-kms`. */
export async function googleFixture(
  alter: (dialect: Dialect) => Dialect = (dialect) => dialect,
): Promise<RemoteFixture> {
  const key = "projects/acme/locations/europe/keyRings/deputy/cryptoKeys/kek";
  const { privateKey, publicKey } = generateKeyPairSync("rsa", {
    modulusLength: 2048,
    publicKeyEncoding: { type: "spki", format: "pem" },
    privateKeyEncoding: { type: "pkcs8", format: "pem" },
  });
  const dialect = alter(googleDialect(key, publicKey));
  const fixture = await remoteFixture(
    dialect,
    (n) => `${key}/cryptoKeyVersions/${n}`,
    () => ({
      DEPUTY_KEK_PROVIDER: "google-kms",
      DEPUTY_KEK_KEYS: key,
    }),
  );
  const account = {
    type: "service_account",
    client_email: "vault@acme.iam.gserviceaccount.com",
    private_key: privateKey,
  };
  const file = `${fixture.tokenFile}.json`;
  await writeFile(file, JSON.stringify(account));
  process.env.GOOGLE_APPLICATION_CREDENTIALS = file;
  return fixture;
}

/** Where a true OpenBao or Vault is, for who has one: docs/vault-keys.md. Its transit engine is mounted at `transit`. */
const realTransit = {
  address: process.env.DEPUTY_TEST_TRANSIT_ADDRESS ?? "",
  caFile: process.env.DEPUTY_TEST_TRANSIT_CA_FILE ?? "",
  token: process.env.DEPUTY_TEST_TRANSIT_TOKEN ?? "",
};

/** Why there is none here; undefined when there is one. */
export const realTransitMissing =
  realTransit.address === "" ? "DEPUTY_TEST_TRANSIT_ADDRESS names no OpenBao or Vault" : undefined;

/** The provider `transit` over a true server, with a key of its own. */
export async function realTransitFixture(): Promise<KekFixture> {
  const directory = await mkdtemp(join(tmpdir(), "deputy-kek-"));
  const tokenFile = join(directory, "token");
  const name = `deputy-${randomBytes(6).toString("hex")}`;
  const egress = openEgress({
    exemptTargets: [new URL(realTransit.address).host],
    extraCa: await readFile(realTransit.caFile, "utf8"),
  });
  const change = async (path: string, body: object) => {
    const { status } = await egress.send({
      url: new URL(`/v1/transit/keys/${name}${path}`, realTransit.address),
      method: "POST",
      headers: [["x-vault-token", realTransit.token]],
      body: Buffer.from(JSON.stringify(body)),
      totalTimeoutMs: 5_000,
      maxBodyBytes: 100_000,
    });
    if (status >= 300) throw new Error(`the true transit engine answered ${status} for ${path}`);
  };
  await change("", { type: "aes256-gcm96" });
  await writeFile(tokenFile, realTransit.token);
  const { provider, close } = await openByName({
    DEPUTY_KEK_PROVIDER: "transit",
    DEPUTY_KEK_KEYS: `transit/${name}`,
    DEPUTY_KEK_ADDRESS: realTransit.address,
    DEPUTY_KEK_CA_FILE: realTransit.caFile,
    DEPUTY_KEK_TOKEN_FILE: tokenFile,
  });
  return {
    provider: () => provider,
    kekId: (n) => `transit:transit/${name}:v${n}`,
    rotate: () => change("/rotate", {}),
    retire: () => change("/config", { min_decryption_version: 2 }),
    lock: () => writeFile(tokenFile, "hvs.revoked"),
    unlock: () => writeFile(tokenFile, realTransit.token),
    async stop() {
      await close();
      await egress.close();
      await rm(directory, { recursive: true });
    },
  };
}
