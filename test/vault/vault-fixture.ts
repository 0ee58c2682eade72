// A vault as its process runs it, on a true database, between an account service that publishes token keys and the true
// sandbox provider behind a shim. Several vaults can share one database.
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "kysely";
import { afterAll, beforeEach } from "vitest";
import type { IdentityClaims } from "#libs/access-tokens.ts";
import { type CatalogApp, loadCatalog } from "#libs/catalog.ts";
import { openEgress } from "#libs/egress.ts";
import { createLogger } from "#libs/log.ts";
import type { Client } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { readSigningKey } from "#libs/signing-key.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { answerConsent } from "../../dev/sandbox-consent.ts";
import { startSandboxProvider } from "../../dev/sandbox-provider.ts";
import { ensureSigningKey } from "../../dev/state.ts";
import type { ImportFormats } from "../../services/vault/import-formats.ts";
import { createKeyringFile, fileKeyring } from "../../services/vault/keyring.ts";
import { openVaultDatabase } from "../../services/vault/schema.ts";
import { startVault as start } from "../../services/vault/start-vault.ts";
import { createTestDatabase, type TestDatabase } from "../support/postgres.ts";
import { startProviderShim } from "../support/provider-shim.ts";
import { signToken, startStandIn, tokenKeys } from "../support/stand-in-service.ts";
import { testTls } from "../support/tls.ts";
import { watchLeasesAs } from "./watching-proxy.ts";

type Vault = Client<typeof CredentialVaultDefinition>;
type Service = "account" | "proxy" | "operator" | "gateway";

const clientId = "deputy-test";
const clientSecret = "a secret: with % and +";
/** The proxy that leases are given to, on whatever vault, unless a test names another. */
export const watchingProxyId = "prx_of_the_fixture";
export const redirectUri = "http://127.0.0.1:9/oauth/callback";
export const whose = { projectId: "proj_1", environment: Environment.DEVELOPMENT, externalUserId: "user-1" };
const claims: IdentityClaims = { sub: "cli_1", project_id: "proj_1", scope: "connect:proxy" };

/** When a call made now must have ended, and the token that it carries. */
export function soon(token?: string): { deadlineMs: number; token?: string } {
  return { deadlineMs: Date.now() + 15_000, ...(token !== undefined && { token }) };
}

/** A token of a caller with the right to use the proxy, unless told otherwise. */
export function tokenWith(more: Partial<IdentityClaims> = {}): Promise<string> {
  return signToken({ ...claims, ...more });
}

/** How one vault of several differs. */
export interface VaultOptions {
  readonly timeoutMs?: number;
  readonly keyringFile?: string;
  readonly worker?: boolean;
  /** Refreshes what is due by itself; off unless asked for, so that a test says what is refreshed when. */
  readonly loop?: boolean;
  readonly spoolDirectory?: string;
  readonly unguardedApps?: readonly string[];
  readonly importFormats?: ImportFormats;
}

/** Says which end it is when one takes long. */
async function inSight(end: (ms: number) => unknown): Promise<void> {
  const late = setTimeout(() => process.stderr.write(`this end of the fixture takes long: ${end}\n`), 10_000);
  await end(2_000);
  clearTimeout(late);
}

/** Sets up what the tests of one file share. Call it at the top level of the file. */
export async function vaultFixture(given?: TestDatabase) {
  const database = given ?? (await createTestDatabase("vault"));
  const ends: (() => unknown)[] = [];
  afterAll(async () => {
    for (const end of ends.splice(0).reverse()) await inSight(end);
  });
  const directory = await mkdtemp(join(tmpdir(), "deputy-vault-"));
  ends.push(() => rm(directory, { recursive: true }));
  const keyringFile = join(directory, "keyring.json");
  await createKeyringFile({ path: keyringFile, now: Date.now });
  const signingKeyFile = join(directory, "signing-key.pem");
  await ensureSigningKey(signingKeyFile);
  const signingKey = await readSigningKey("DEPUTY_SIGNING_KEY_FILE", await readFile(signingKeyFile, "utf8"));

  const tls = await testTls("sandbox");
  const provider = await startSandboxProvider({
    port: 0,
    hostname: "localhost",
    clientId,
    clientSecret,
    redirectUris: [redirectUri],
    accessTokenSeconds: 3600,
    tls: { key: tls.key, cert: tls.certificate },
  });
  ends.push(() => provider.stop());
  const shim = await startProviderShim(provider.url, tls);
  ends.push(() => shim.stop());
  beforeEach(() => {
    shim.misbehave(() => undefined);
    shim.allowReuse(0);
  });

  const exemptTargets = [new URL(provider.url).host, shim.address];
  const account = await startStandIn({
    definition: AccountServiceDefinition,
    service: "account",
    handlers: { getTokenKeys: async () => ({ keys: [...(await tokenKeys())] }) },
    callers: { getTokenKeys: [{ service: "vault" }] },
  });
  ends.push(() => account.drain(1_000));
  const catalog = catalogAt(provider.url, shim.url);
  const access = { ...database.runtime, applicationName: "vault-test", statementTimeoutMs: 10_000 };
  const db = openVaultDatabase({ ...access, maxConnections: 4 });
  ends.push(() => db.destroy());

  /** Starts a vault as its process does. */
  async function startVault(more: VaultOptions = {}) {
    const lines: string[] = [];
    const vaultTls = await testTls("vault");
    const keys = createClient(AccountServiceDefinition, {
      address: `127.0.0.1:${account.internalPort}`,
      tls: vaultTls,
      service: "account",
    });
    const started = await start({
      log: createLogger("vault", "info", { write: (line) => lines.push(line) }),
      database: access,
      kekProvider: fileKeyring({ path: more.keyringFile ?? keyringFile }),
      signingKey,
      catalog,
      outgoing: { exemptTargets, extraCa: tls.ca },
      account: keys,
      importFormats: more.importFormats ?? {},
      spoolDirectory: more.spoolDirectory ?? "",
      unguardedApps: more.unguardedApps ?? [],
      passPoint: () => undefined,
      listener: { address: "127.0.0.1:0", tls: vaultTls, reflection: false },
      intervals: { sealStateMs: 50, rotationMs: 50, refreshMs: 100 },
      ...(more.timeoutMs !== undefined && { providerTimeoutMs: more.timeoutMs }),
      without: [
        ...(more.worker === false ? (["revocations"] as const) : []),
        ...(more.loop ? [] : (["refreshes"] as const)),
      ],
    });
    const clients: { [Name in Service]?: Vault & { close(): void } } = {};
    async function as(service: Service): Promise<Vault> {
      const found = clients[service] ?? (await connect(service));
      clients[service] = found;
      return found;
    }
    async function connect(service: Service) {
      const options = { address: `127.0.0.1:${started.port}`, tls: await testTls(service), service: "vault" };
      const client = createClient(CredentialVaultDefinition, options);
      const leaseInjection: Vault["leaseInjection"] = (request, call) =>
        client.leaseInjection({ proxyId: watchingProxyId, ...request }, call);
      return { ...client, leaseInjection };
    }
    const [stopStreams, ...stopSteps] = started.stopSteps;
    const stop = async () => {
      ends.splice(0, ends.length, ...ends.filter((end) => end !== stop));
      await stopStreams?.(2_000);
      for (const client of Object.values(clients)) client.close();
      for (const step of stopSteps) await inSight(step);
      keys.close();
    };
    ends.push(stop);
    return { ...started, as, lines, stop };
  }

  const vault = await startVault();
  const [asAccount, asProxy] = [await vault.as("account"), await vault.as("proxy")];
  const watching = await watchLeasesAs(asProxy, watchingProxyId);
  const oauthAppId = "oa_1";
  const putClient = (clientSecrets = [clientSecret], keepSecrets = false, id = clientId) => {
    const client = { projectId: "proj_1", oauthAppId, appSlug: "sandbox", clientId: id, clientSecrets, keepSecrets };
    return asAccount.putOauthClient(client, soon());
  };
  await putClient();

  let accounts = 0;
  const newAccountId = () => `apn_${++accounts}`;

  /** Begins an authorization and plays the user; gives what the redirect brings. */
  async function consent(accountId: string, decision: "allow" | "deny" = "allow", name = "Ada Lovelace") {
    const request = { ...whose, accountId, appSlug: "sandbox", oauthAppId, redirectUri };
    const { authorizationUrl, stateDigest } = await asAccount.startAuthorization(request, soon());
    const back = new URL(await answerConsent({ authorizationUrl, decision, name, ca: tls.ca }));
    const value = (parameter: string) => back.searchParams.get(parameter) ?? "";
    const redirect = { state: value("state"), code: value("code"), error: value("error"), issuer: value("iss") };
    return { redirect, back, stateDigest };
  }

  /** Connects an account by the whole flow. */
  async function connectAccount(): Promise<string> {
    const accountId = newAccountId();
    const { redirect } = await consent(accountId);
    await asAccount.completeAuthorization(redirect, soon());
    return accountId;
  }

  const token = await tokenWith();
  const leaseBy = (client: Vault, accountId: string, bearer = token) =>
    client.leaseInjection({ ...whose, accountId }, soon(bearer));

  return {
    ...{
      database,
      db,
      provider,
      shim,
      catalog,
      vault,
      asAccount,
      asProxy,
      watching,
      oauthAppId,
      token,
      keyringFile,
      signingKey,
      signingKeyFile,
      directory,
    },
    ...{ startVault, putClient, newAccountId, consent, connectAccount, clientSecret },
    ...{ exemptTargets, ends, tls, account },
    lease: (accountId: string, bearer?: string) => leaseBy(asProxy, accountId, bearer),
    leaseBy,
    /** Lets the access token end, by the database's clock, in so many seconds. */
    endTokenIn: async (accountId: string, seconds: number) => {
      const expireTime = sql<Date>`now() + make_interval(secs => ${seconds})`;
      await db.updateTable("credentials").set({ expireTime }).where("accountId", "=", accountId).execute();
    },
    /** As if the proxy had not been heard for so many seconds; its next word undoes it. */
    pauseHeartbeatsOf: async (proxyId: string, seconds: number) => {
      const lastSeenTime = sql<Date>`now() - make_interval(secs => ${seconds})`;
      await db.updateTable("leaseWatchers").set({ lastSeenTime }).where("proxyId", "=", proxyId).execute();
    },
    /** Lets the loop find the account, and forgets the pause after a failure. */
    makeDue: async (...accountIds: string[]) => {
      const due = { nextRefreshTime: sql<Date>`now() - interval '1 second'`, retryTime: null };
      await db.updateTable("credentials").set(due).where("accountId", "in", accountIds).execute();
    },
    rowOf: (accountId: string) =>
      db.selectFrom("credentials").selectAll().where("accountId", "=", accountId).executeTakeFirstOrThrow(),
    credential: async (accountId: string) => {
      const request = { projectId: "proj_1", environment: whose.environment, accountId };
      return (await asAccount.getCredential(request, soon())).credential;
    },
    destroy: async (...accountIds: string[]) => {
      const request = { projectId: "proj_1", environment: whose.environment, accountIds };
      return (await asAccount.destroyCredentials(request, soon())).receipts;
    },
    /** What the sandbox's API says to the credential of a lease. */
    callApi: async (lease: { headers: readonly { name: string; value: string }[] } | undefined) => {
      const headers = (lease?.headers ?? []).map(({ name, value }): [string, string] => [name, value]);
      const url = new URL(`${provider.url}/api/me`);
      const egress = openEgress({ exemptTargets, extraCa: tls.ca });
      try {
        return (await egress.send({ url, method: "GET", headers, totalTimeoutMs: 5_000, maxBodyBytes: 10_000 })).status;
      } finally {
        await egress.close();
      }
    },
    tokenRequests: () => shim.requests.filter((path) => path === "/token").length,
  };
}

/** What the tests of one file share. */
export type VaultFixture = Awaited<ReturnType<typeof vaultFixture>>;

/** The repository's own catalog, at the sandbox's true port, with what the vault sends going through the shim. */
function catalogAt(providerUrl: string, shimUrl: string): Map<string, CatalogApp> {
  const entries = [...loadCatalog("catalog", { production: false }).values()].map((entry): [string, CatalogApp] => {
    const app: CatalogApp = JSON.parse(
      JSON.stringify(entry)
        .replaceAll("https://localhost:7480", providerUrl)
        .replaceAll("[7480]", `[${new URL(providerUrl).port}]`),
    );
    const { oauth2 } = app;
    if (oauth2 === undefined) return [app.slug, app];
    oauth2.token.url = oauth2.token.url.replace(providerUrl, shimUrl);
    if (oauth2.revoke) oauth2.revoke.url = oauth2.revoke.url.replace(providerUrl, shimUrl);
    return [app.slug, app];
  });
  return new Map(entries);
}

/** Waits until a condition holds. */
export async function until(condition: () => Promise<boolean> | boolean, withinMs = 20_000): Promise<void> {
  const giveUpMs = performance.now() + withinMs;
  while (!(await condition())) {
    if (performance.now() > giveUpMs) throw new Error("did not come true in time");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
