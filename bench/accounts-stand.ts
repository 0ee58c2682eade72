// What the benchmark of accounts runs on: Postgres that syncs its disk, a table full of accounts, the true account service in a
// process of its own, and the bare server beside it.
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type DatabaseOptions, openConnection } from "#libs/database.ts";
import type { Client } from "#libs/rpc.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { operatorTls } from "../dev/bootstrap.ts";
import { startChild } from "../dev/child.ts";
import { freePorts } from "../dev/ports.ts";
import { startPostgres } from "../dev/postgres.ts";
import { prepareState, readSecret, trustDomain } from "../dev/state.ts";
import { atDatabase, databaseRoles, provisionDatabases } from "../migrations/databases.ts";
import { migrate } from "../migrations/migrate.ts";

/** What is measured. */
export type AccountClient = Pick<Client<typeof AccountServiceDefinition>, "getAccount" | "listAccounts">;

/** What everything is measured on. */
export type AccountsStand = Awaited<ReturnType<typeof openAccountsStand>>;

// A server of Postgres' own choice has 128 MB: less than a million rows and their indexes take.
const memory = { shared_buffers: "2GB", max_wal_size: "4GB", checkpoint_timeout: "15min" };

/** Of a user ten accounts; of each app every hundredth. One in twenty is a tombstone. */
const fill = `
  insert into accounts (project_id, id, environment, external_user_id, app_slug, oauth_app_id, name, state, health, error,
    authorized_scopes, create_time, update_time, revoke_time)
  select $2, 'apn_' || left(md5(n::text), 22), 1, 'user_' || n / 10, 'app_' || n % 100, 'oa_' || n % 100, 'Account ' || n,
    case when n % 21 = 20 then 'REVOKED' else 'ACTIVE' end, case when n % 1000 = 0 then 'DEAD' else 'HEALTHY' end, '',
    '{read,write}', time, time, case when n % 21 = 20 then time end
  from generate_series(0, $1::int * 21 / 20 - 1) as n, lateral (select now() - interval '1 hour' + n * interval '2 ms') as at(time)`;

/** Starts Postgres with so many usable accounts. */
export async function openAccountsStand(accounts: number, projectId: string) {
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
    const ports = await freePorts();
    const state = await prepareState(directory, ports);
    const postgres = await startTuned(state.postgres);
    ends.push(() => postgres.stop());
    const { passwordFiles } = state;
    const roles = {
      account: { runtime: readSecret(passwordFiles.account), owner: readSecret(passwordFiles["account-owner"]) },
      vault: { runtime: readSecret(passwordFiles.vault), owner: readSecret(passwordFiles["vault-owner"]) },
    };
    await provisionDatabases({ url: postgres.url, password: postgres.password, roles });
    const { database, owner, runtime } = databaseRoles("account");
    const as = (user: string, password: string): DatabaseOptions => {
      const url = new URL(atDatabase(postgres.url, database));
      url.username = user;
      return { url: url.href, password, applicationName: "bench", statementTimeoutMs: 0 };
    };
    const asOwner = as(owner, roles.account.owner);
    await migrate({ database: "account", url: asOwner.url, password: roles.account.owner });
    const admin = await openConnection(as("postgres", postgres.password));
    const startMs = performance.now();
    await admin.query(
      "insert into projects (id, name, app_name, support_email, create_time, update_time) values ($1, '', '', '', now(), now())",
      [projectId],
    );
    // Without the triggers: nobody watches how the accounts come about. The indexes come afterwards: sorted, in a tenth of the time.
    await admin.query("set session_replication_role = replica");
    await admin.query("set maintenance_work_mem = '512MB'");
    const indexes = await admin.query<{ name: string; definition: string }>(
      `select indexname as name, indexdef as definition from pg_indexes
       where tablename = 'accounts' and indexname <> 'accounts_pkey'`,
    );
    for (const { name } of indexes) await admin.query(`drop index ${name}`);
    await admin.query(fill, [accounts, projectId]);
    for (const { definition } of indexes) await admin.query(definition);
    // As the autovacuum would, in its time.
    await admin.query("vacuum (analyze) accounts");
    await admin.query("vacuum (analyze) account_changes");
    await admin.query("checkpoint");
    await admin.end();
    const fillSeconds = Number(((performance.now() - startMs) / 1000).toFixed(1));
    const asService = () => as(runtime, roles.account.runtime);
    const settings = {
      DEPUTY_LOG_LEVEL: "warn",
      DEPUTY_TRUST_DOMAIN: trustDomain,
      DEPUTY_TLS_CA_FILE: state.certificates.caFile,
      DEPUTY_TLS_CERTIFICATE_FILE: state.certificates.services.account?.certificateFile ?? "",
      DEPUTY_TLS_KEY_FILE: state.certificates.services.account?.keyFile ?? "",
      DEPUTY_DATABASE_URL: asService().url,
      DEPUTY_DATABASE_PASSWORD_FILE: passwordFiles.account,
    };

    /** A process that answers as the account service, and a client of it, with the operator's certificate. */
    async function start(name: string, file: string, address: string, more: Readonly<Record<string, string>>) {
      const child = startChild({
        ...{ name, file, settings: { ...settings, ...more } },
        ...{ logDirectory: state.logs, cacheDirectory: state.compileCache },
      });
      ends.push(() => child.stop());
      const client = createClient(AccountServiceDefinition, { address, tls: operatorTls(state), service: "account" });
      ends.push(() => client.close());
      await until(() => client.listAccounts({ projectId, environment: 1, pageSize: 1 }, soon()));
      return client;
    }

    const service = `127.0.0.1:${ports.account}`;
    const bare = `127.0.0.1:${ports.proxy}`;
    return {
      asService,
      fillSeconds,
      startService: () =>
        start("account", "services/account/main.ts", service, {
          DEPUTY_ACCOUNT_INTERNAL_ADDRESS: service,
          DEPUTY_ACCOUNT_PUBLIC_ADDRESS: `127.0.0.1:${ports.accountPublic}`,
          DEPUTY_VAULT_ADDRESS: `127.0.0.1:${ports.vault}`,
          DEPUTY_TOKEN_KEY_FILE: state.tokenKeyFile,
          DEPUTY_DEVELOPMENT: "true",
        }),
      /** `plan` says which statements answer what. */
      async startBare(plan: unknown) {
        const file = join(directory, "bare.json");
        await writeFile(file, JSON.stringify(plan));
        return start("bare", "bench/bare-accounts.ts", bare, {
          DEPUTY_BENCH_ADDRESS: bare,
          DEPUTY_BENCH_STATEMENTS_FILE: file,
        });
      },
    };
  }
}

/** How long a call of the benchmark may take. */
export function soon() {
  return { deadlineMs: Date.now() + 20_000 };
}

async function startTuned(dataDirectory: string) {
  const postgres = await startPostgres({ dataDirectory, durable: true });
  const { url, password } = postgres;
  const admin = await openConnection({ url, password, applicationName: "bench", statementTimeoutMs: 10_000 });
  for (const [name, value] of Object.entries(memory)) await admin.query(`alter system set ${name} = '${value}'`);
  await admin.end();
  await postgres.stop();
  return startPostgres({ dataDirectory, durable: true });
}

async function until(answers: () => Promise<unknown>): Promise<void> {
  const giveUpMs = performance.now() + 120_000;
  for (;;) {
    try {
      await answers();
      return;
    } catch (error) {
      if (performance.now() > giveUpMs) throw error;
    }
    await sleep(100);
  }
}
