// What the soak and the bench of fairness run on: the whole stack, with a proxy whose limits let the load through and which is measured, an upstream of
// the soak's own, accounts connected by OAuth, and a vault that can be ended and started again.
import { once } from "node:events";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { streamingProxyDefinition } from "#libs/chunk-codec.ts";
import { openConnection } from "#libs/database.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { operatorTls, serviceTls } from "../dev/bootstrap.ts";
import { startChild } from "../dev/child.ts";
import { walkConnectPage } from "../dev/connect-page.ts";
import { freePorts } from "../dev/ports.ts";
import { sandboxRequest } from "../dev/sandbox-request.ts";
import { startStack } from "../dev/stack.ts";
import { readSecret, trustDomain } from "../dev/state.ts";
import { atDatabase } from "../migrations/databases.ts";
import type { Slot } from "./soak-load.ts";
import { startSoakUpstream } from "./soak-upstream.ts";

/** What everything is measured on. */
export type SoakStand = Awaited<ReturnType<typeof openSoakStand>>;

/** A project with the means to forward for one account of its own. */
export interface Tenant {
  readonly projectId: string;
  readonly token: string;
  readonly slot: Slot;
}

const environment = Environment.DEVELOPMENT;
const within = (ms: number) => ({ deadlineMs: Date.now() + ms });

// More than is ever sent.
const unlimited = 1_000_000;

/** Starts it. `limitedTo` is what the second project may send in each second. */
export async function openSoakStand({ limitedTo = unlimited }: { readonly limitedTo?: number } = {}) {
  const directory = await mkdtemp(join(tmpdir(), "deputy-bench-"));
  // Postgres runs under another user when started by root, and must get through.
  await chmod(directory, 0o711);
  const ends: (() => unknown)[] = [() => rm(directory, { recursive: true, force: true })];
  const close = async () => {
    for (const end of ends.splice(0).reverse()) await end();
  };
  try {
    return { ...(await open()), close };
  } catch (error) {
    await close();
    throw error;
  }

  async function open() {
    const stack = await startStack({
      ...{ stateDirectory: directory, ports: await freePorts(), durable: false, logLevel: "warn" },
    });
    ends.push(() => stack.stop());
    const { connection, state, settings, postgres } = stack;
    const ca = readSecret(connection.ca_file);
    const upstream = await startSoakUpstream(serviceTls(state, "sandbox"));
    ends.push(() => upstream.stop());
    const asOperator = createClient(AccountServiceDefinition, {
      ...{
        address: settings.account.DEPUTY_ACCOUNT_INTERNAL_ADDRESS ?? "",
        tls: operatorTls(state),
        service: "account",
      },
    });
    const tls = { ca, trustDomain };
    const account = createClient(AccountServiceDefinition, {
      ...{ address: connection.grpc.account, tls, service: "account" },
    });
    const proxy = createClient(streamingProxyDefinition, {
      ...{ address: connection.grpc.proxy, tls, service: "proxy" },
    });
    ends.push(() => {
      for (const client of [asOperator, account, proxy]) client.close();
    });
    const clientId = connection.client_id;
    const token = await accessToken(clientId, connection.client_secret);
    const first = await tenant(connection.project_id, token);
    const limited = await secondTenant();
    const proxyChild = await replaceProxy();
    let vault = stack.children.vault;
    ends.push(() => vault.stop());
    await untilServed();
    return {
      ...{ proxy, first, limited, upstream, proxyChild, environment },
      connectSlots,
      restartVault,
      endTokens,
      providerStats,
      /** Revokes the account of a slot; gives back when it is answered. */
      revoke: async ({ accountId }: Slot) => {
        await account.deleteAccount(
          { projectId: first.projectId, environment, accountId },
          { ...within(20_000), token },
        );
      },
      connectAnew: async (slot: Slot) => {
        slot.accountId = await connect(slot.externalUserId);
      },
    };

    function start(name: string, file: string, values: Readonly<Record<string, string>>) {
      const { logs: logDirectory, compileCache: cacheDirectory } = state;
      return startChild({ name, file, settings: values, logDirectory, cacheDirectory });
    }

    async function accessToken(id: string, clientSecret: string): Promise<string> {
      const grant = { $case: "clientCredentials", value: { clientId: id, clientSecret } } as const;
      return (await account.issueAccessToken({ grant }, within(10_000))).accessToken;
    }

    /** An account with a key needs nobody's consent. */
    async function tenant(projectId: string, bearer: string): Promise<Tenant> {
      const credential = { $case: "fields", value: { values: { api_key: "sandbox-key-of-the-soak" } } } as const;
      const asked = { projectId, environment, externalUserId: "key", appSlug: "sandbox_header_key", credential };
      const { account: made } = await account.createAccount(asked, { ...within(10_000), token: bearer });
      return { projectId, token: bearer, slot: { externalUserId: "key", accountId: made?.id ?? "" } };
    }

    async function secondTenant(): Promise<Tenant> {
      const { project } = await asOperator.createProject({ name: "limited", appName: "Limited" }, within(10_000));
      const projectId = project?.id ?? "";
      const made = await asOperator.createApiClient({ projectId, name: "bench" }, within(10_000));
      return tenant(projectId, await accessToken(made.apiClient?.id ?? "", made.clientSecret));
    }

    async function replaceProxy() {
      await stack.children.proxy.stop();
      const child = start("proxy-soak", "services/proxy/main.ts", {
        ...settings.proxy,
        DEPUTY_EGRESS_TEST_ALLOW: `${new URL(connection.sandbox.api_url).host},${upstream.host}`,
        DEPUTY_LIMIT_WINDOW: "1s",
        DEPUTY_LIMIT_PROJECT_REQUESTS: String(unlimited),
        DEPUTY_LIMIT_OF_PROJECTS: `${limited.projectId}=${limitedTo}`,
        DEPUTY_LIMIT_PROJECT_IN_FLIGHT: "1000",
        DEPUTY_LIMIT_ACCOUNT_IN_FLIGHT: "1000",
        NODE_OPTIONS: "--import=./bench/process-samples.ts",
      });
      ends.push(() => child.stop());
      return child;
    }

    async function untilServed(): Promise<void> {
      const { projectId, slot } = first;
      const request = { projectId, environment, ...slot, method: "GET", url: `https://${upstream.host}/small` };
      for (const giveUpMs = performance.now() + 20_000; ; await sleep(100)) {
        try {
          await proxy.forward(request, { ...within(2_000), token });
          return;
        } catch (error) {
          if (performance.now() > giveUpMs) throw error;
        }
      }
    }

    async function connect(externalUserId: string): Promise<string> {
      const { projectId } = first;
      const asked = { projectId, environment, externalUserId, appSlug: connection.sandbox.app };
      const { connectLinkUrl } = await account.createConnectToken(asked, { ...within(10_000), token });
      const ended = await walkConnectPage({ link: connectLinkUrl, name: externalUserId, ca });
      if (ended.status >= 400) throw new Error(`the callback answered ${ended.status}: ${await ended.text()}`);
      const whose = { projectId, environment, externalUserId };
      const { accounts } = await account.listAccounts(whose, { ...within(10_000), token });
      return accounts.at(-1)?.id ?? "";
    }

    async function connectSlots(count: number): Promise<readonly Slot[]> {
      const slots: Slot[] = [];
      for (let index = 0; index < count; index += 1) {
        const externalUserId = `soak ${index}`;
        slots.push({ externalUserId, accountId: await connect(externalUserId) });
      }
      return slots;
    }

    /** Ends the vault in one way or the other, and starts it again. */
    async function restartVault(how: "SIGTERM" | "SIGKILL"): Promise<void> {
      const [ended, startMs] = [once(vault.process, "exit"), performance.now()];
      vault.process.kill(how);
      await ended;
      console.log(`  the vault has ended after ${Math.round(performance.now() - startMs)} ms`);
      vault = start("vault", "services/vault/main.ts", settings.vault);
      await untilServed();
    }

    /** What the provider was asked for. */
    async function providerStats(): Promise<{ readonly refreshes: number; readonly killed: number }> {
      const stats = await sandboxRequest(new URL("/stats", connection.sandbox.api_url), ca);
      const { tokenRequests, familiesRevokedByReuse: killed } = stats as {
        readonly tokenRequests: { readonly refresh_token?: { readonly success?: number } };
        readonly familiesRevokedByReuse: number;
      };
      return { refreshes: tokenRequests.refresh_token?.success ?? 0, killed };
    }

    /** The access tokens of these accounts are over in the vault's eyes. */
    async function endTokens(slots: readonly Slot[]): Promise<void> {
      const db = await openConnection({
        ...{ url: atDatabase(postgres.url, "deputy_vault"), password: postgres.password },
        ...{ applicationName: "bench", statementTimeoutMs: 10_000 },
      });
      await db
        .query("update credentials set expire_time = now() - interval '1 second' where account_id = any($1)", [
          slots.map(({ accountId }) => accountId),
        ])
        .finally(() => db.end());
    }
  }
}
