// `npm run bench:revoke-all`: what revoking costs whoever calls AccountService, over true processes: a hundred users of a hundred
// accounts each, one after the other, and then an environment of ten thousand accounts. Every account has a sealed grant, and
// its provider is told behind it, on the same machine. Keeps its figures in bench/results/revoke-all.json; with other numbers behind
// the command (users, accounts of each, accounts of the environment) it keeps none.
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { openConnection } from "#libs/database.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { RevokeAllAccountsRequest } from "#proto/deputy/account/v1/accounts.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { serviceTls } from "../dev/bootstrap.ts";
import { freePorts } from "../dev/ports.ts";
import { type Stack, startStack } from "../dev/stack.ts";
import { readSecret } from "../dev/state.ts";
import { atDatabase } from "../migrations/databases.ts";
import { at } from "./quantiles.ts";

const sizes = process.argv.slice(2).map(Number);
const [users = 100, accountsPerUser = 100, accountsOfEnvironment = 10_000] = sizes;
const oauthAppId = "oa_bench";
const limits = { userP99Ms: 150, environmentSeconds: 10 };
const within = (ms: number) => ({ deadlineMs: Date.now() + ms });

const stateDirectory = await mkdtemp(join(tmpdir(), "deputy-bench-"));
// Postgres runs under another user when started by root, and must get through.
await chmod(stateDirectory, 0o711);
const stack = await startStack({ stateDirectory, ports: await freePorts(), durable: false, logLevel: "error" });
const ends: (() => unknown)[] = [];
try {
  const result = await measure(stack);
  console.table(result);
  const file = join(import.meta.dirname, "results/revoke-all.json");
  if (sizes.length === 0) await writeFile(file, `${JSON.stringify(result, undefined, 2)}\n`);
  const { userP99Ms, environmentSeconds, receipts, accounts } = result;
  const isQuick = userP99Ms < limits.userP99Ms && environmentSeconds < limits.environmentSeconds;
  console.log(isQuick && receipts === accounts ? "holds" : "DOES NOT HOLD");
  if (!isQuick || receipts !== accounts) process.exitCode = 1;
} finally {
  for (const end of ends.reverse()) await end();
  await stack.stop();
  await rm(stateDirectory, { recursive: true, force: true });
}

async function measure({ connection, state, postgres, settings }: Stack) {
  const { project_id: projectId } = connection;
  const vault = createClient(CredentialVaultDefinition, {
    ...{ address: connection.grpc.vault, tls: serviceTls(state, "account"), service: "vault" },
  });
  const tls = { ca: readSecret(connection.ca_file), trustDomain: settings.account.DEPUTY_TRUST_DOMAIN ?? "" };
  const account = createClient(AccountServiceDefinition, { address: connection.grpc.account, tls, service: "account" });
  const open = async (database: string) => {
    const access = { url: atDatabase(postgres.url, database), password: postgres.password };
    const connection = await openConnection({ ...access, applicationName: "bench", statementTimeoutMs: 60_000 });
    ends.push(() => connection.end());
    return connection;
  };
  const [db, vaultDb] = [await open("deputy_account"), await open("deputy_vault")];
  ends.push(vault.close, account.close);
  const value = { clientId: connection.client_id, clientSecret: connection.client_secret };
  const grant = { $case: "clientCredentials", value } as const;
  const { accessToken: token } = await account.issueAccessToken({ grant }, within(10_000));
  const client = {
    projectId,
    oauthAppId,
    appSlug: "sandbox",
    clientId: "deputy",
    clientSecrets: [readSecret(state.passwordFiles["sandbox-client"])],
  };
  await vault.putOauthClient(client, within(10_000));

  const all = new Set<string>();
  const userMs: number[] = [];
  const ids = Array.from({ length: users }, (_, user) => `user-${user}`);
  // The first calls find nothing compiled, and Postgres plans a statement five times before it keeps the plan.
  const warmUps = Array.from({ length: 10 }, (_, user) => `warm-up-${user}`);
  console.log(`storing ${users} users of ${accountsPerUser} accounts`);
  for (const id of [...warmUps, ...ids]) await storeAccounts(id, accountsPerUser);
  await analyze();
  console.log("revoking one user after the other");
  for (const id of [...warmUps, ...ids]) {
    userMs.push(await revoke({ $case: "externalUserId", value: id }));
    await providersTold();
  }
  userMs.splice(0, warmUps.length);
  console.log(`storing ${accountsOfEnvironment} accounts of one environment`);
  await storeAccounts("environment", accountsOfEnvironment);
  await analyze();
  const environmentMs = await revoke({ $case: "wholeEnvironment", value: true });
  return {
    accounts: (warmUps.length + users) * accountsPerUser + accountsOfEnvironment,
    receipts: all.size,
    usersRevoked: users,
    accountsPerUser,
    userP50Ms: at(userMs, 0.5),
    userP99Ms: at(userMs, 0.99),
    accountsOfEnvironment,
    environmentSeconds: round(environmentMs / 1000),
    accountsPerSecond: Math.round(accountsOfEnvironment / (environmentMs / 1000)),
    cores: availableParallelism(),
    node: process.version,
  };

  /** Gives the milliseconds to the end of the stream. */
  async function revoke(target: NonNullable<RevokeAllAccountsRequest["target"]>): Promise<number> {
    const startMs = performance.now();
    const request = { projectId, environment: Environment.DEVELOPMENT, target };
    for await (const { receipt } of account.revokeAllAccounts(request, { ...within(120_000), token })) {
      if (receipt?.jws) all.add(receipt.accountId);
    }
    return performance.now() - startMs;
  }

  async function storeAccounts(externalUserId: string, count: number): Promise<void> {
    const names = Array.from({ length: count }, (_, index) => `apn_${externalUserId.replaceAll("-", "")}x${index}`);
    const left = [...names];
    const expireTime = new Date(Date.now() + 3_600_000);
    const worker = async () => {
      for (let accountId = left.pop(); accountId !== undefined; accountId = left.pop()) {
        const value = { accessToken: `access-${accountId}`, refreshToken: `refresh-${accountId}`, expireTime };
        const subject = { projectId, environment: Environment.DEVELOPMENT, externalUserId, accountId };
        const request = { ...subject, appSlug: "sandbox", oauthAppId, material: { $case: "grant", value } as const };
        await vault.storeCredential(request, within(30_000));
      }
    };
    await Promise.all(Array.from({ length: 16 }, worker));
    await db.query(
      `insert into accounts (project_id, id, environment, external_user_id, app_slug, oauth_app_id, name, state, health, error,
         authorized_scopes, create_time, update_time)
       select $1, id, 1, $2, 'sandbox', $3, '', 'ACTIVE', 'HEALTHY', '', '{}', now(), now() from unnest($4::text[]) as id`,
      [projectId, externalUserId, oauthAppId, names],
    );
  }

  /** A user's end is an event of its own: what goes on behind one call is not measured with the next. */
  async function providersTold(): Promise<void> {
    for (let pending = "1"; pending !== "0"; await sleep(100)) {
      const [row] = await vaultDb.query<{ count: bigint }>("select count(*) from revocations where state = 'PENDING'");
      pending = String(row?.count);
    }
    // What they were told is sealed in the audit, and the queue's last jobs are put away.
    await sleep(400);
  }

  /** As the autovacuum would, in its time: without, Postgres takes a table that was just filled for an empty one. */
  async function analyze(): Promise<void> {
    for (const one of [db, vaultDb]) await one.query("vacuum (analyze)");
  }
}

function round(value: number): number {
  return Number(value.toFixed(2));
}
