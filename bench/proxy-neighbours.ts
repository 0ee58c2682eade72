// The account service and the vault as bench/proxy.ts needs them: true servers on the contract's definitions, which know every
// account, answer from memory, and count what they are asked.
import { exportJWK, generateKeyPair, SignJWT } from "jose";
import { accessTokenVerifier, tokenIssuer } from "#libs/access-tokens.ts";
import type { Admission } from "#libs/callers.ts";
import { unimplemented } from "#libs/errors.ts";
import { createLogger } from "#libs/log.ts";
import type { Handlers, ServiceDefinition } from "#libs/rpc.ts";
import { type RunningServer, startServer } from "#libs/rpc-server.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Account, AccountState } from "#proto/deputy/account/v1/accounts.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { InjectionLease, type WatchLeasesResponse } from "#proto/deputy/vault/v1/leases.ts";
import { readBenchTls, upstreamHost } from "./proxy-tls.ts";

/** The neighbours at work. */
export interface Neighbours {
  readonly accountPort: number;
  readonly vaultPort: number;
  /** Of an API client that may do everything in the project. */
  readonly token: string;
  /** How often the vault was asked for leases. */
  leases(): number;
  stop(): Promise<void>;
}

const heartbeatMs = 1_000;

/** Starts them on loopback. */
export async function startNeighbours(directory: string, upstreamPort: number): Promise<Neighbours> {
  const keyPair = await generateKeyPair("EdDSA");
  const { x = "" } = await exportJWK(keyPair.publicKey);
  const keys = [{ keyId: "bench", x }];
  const verify = accessTokenVerifier(async () => keys, Date.now);
  let leases = 0;

  function start<D extends ServiceDefinition>(
    definition: D,
    service: string,
    handlers: Partial<Handlers<D>>,
  ): Promise<RunningServer> {
    const names = Object.keys(definition.methods);
    const closed = () => {
      throw unimplemented(service);
    };
    const everybody: readonly Admission[] = [{ service: "proxy" }];
    return startServer({
      definition,
      handlers: { ...Object.fromEntries(names.map((name) => [name, closed])), ...handlers } as Handlers<D>,
      callers: Object.fromEntries(names.map((name) => [name, everybody])) as never,
      authenticate: async (token) => ({ identity: await verify(token), token }),
      internalAddress: "127.0.0.1:0",
      tls: readBenchTls(directory, service),
      reflection: false,
      log: createLogger(service, "silent"),
    });
  }

  const account = await start(AccountServiceDefinition, "account", {
    getAccount: async ({ accountId }) => ({
      account: Account.fromPartial({ id: accountId, state: AccountState.ACTIVE }),
    }),
    getTokenKeys: async () => ({ keys }),
  });
  const vault = await start(CredentialVaultDefinition, "vault", {
    watchLeases: (_requests, { signal }) => heartbeats(signal),
    leaseInjection: async ({ accountId }) => {
      leases += 1;
      return { lease: leaseOf(accountId) };
    },
    renewLeases: async ({ renewals }) => {
      leases += 1;
      return { results: renewals.map(({ accountId }) => ({ lease: leaseOf(accountId) })) };
    },
  });

  function leaseOf(accountId: string): InjectionLease {
    return InjectionLease.fromPartial({
      appSlug: "acme",
      proxyEnabled: true,
      headers: [{ name: "Authorization", value: `Bearer access-token-of-${accountId}` }],
      baseUrl: `https://${upstreamHost}:${upstreamPort}`,
      allowedDomains: [upstreamHost],
      absoluteUrlsAllowed: true,
      leaseDurationMs: 10_000,
    });
  }

  const token = await new SignJWT({ project_id: "proj_bench", scope: "*" })
    .setProtectedHeader({ alg: "EdDSA", kid: "bench" })
    .setIssuer(tokenIssuer)
    .setAudience(tokenIssuer)
    .setSubject("cli_bench")
    .setExpirationTime("1h")
    .sign(keyPair.privateKey);
  return {
    accountPort: account.internalPort,
    vaultPort: vault.internalPort,
    token,
    leases: () => leases,
    stop: async () => {
      await Promise.all([account.drain(500), vault.drain(500)]);
    },
  };
}

async function* heartbeats(signal: AbortSignal): AsyncGenerator<WatchLeasesResponse> {
  while (!signal.aborted) {
    yield { message: { $case: "heartbeat", value: { time: new Date() } } };
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, heartbeatMs);
      signal.addEventListener("abort", () => resolve(clearTimeout(timer)), { once: true });
    });
  }
}
