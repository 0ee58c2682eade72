// The least that could answer the same: the same adapter over grpc-js with the same certificates, and the service's own statements
// through pg, named. No query builder, no tables as functions, no judging of who may see what.
import { readConfig } from "#libs/config.ts";
import { openPool } from "#libs/database.ts";
import { createLogger } from "#libs/log.ts";
import { dieLoudly } from "#libs/process.ts";
import type { Handlers } from "#libs/rpc.ts";
import { startServer } from "#libs/rpc-server.ts";
import { serviceSettings, tlsIdentity } from "#libs/service-settings.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { Account, AccountHealth, AccountState } from "#proto/deputy/account/v1/accounts.ts";
import { callers } from "../services/account/callers.ts";
import type { Operation, Statement, Statements } from "./account-statements.ts";

/** What the benchmark hands over. */
export interface BarePlan {
  readonly statements: Statements;
  /** What the example's values are, to be replaced by a request's. */
  readonly examples: Readonly<Record<"accountId" | "externalUserId" | "appSlug", string>>;
  readonly pageToken: string;
}

interface Row {
  readonly id: string;
  readonly project_id: string;
  readonly environment: 1 | 2;
  readonly external_user_id: string;
  readonly app_slug: string;
  readonly oauth_app_id: string;
  readonly name: string;
  readonly state: "ACTIVE";
  readonly health: "HEALTHY" | "DEAD";
  readonly error: string;
  readonly authorized_scopes: string[];
  readonly create_time: Date;
  readonly update_time: Date;
}

const config = readConfig({
  ...serviceSettings,
  DEPUTY_DATABASE_URL: { kind: "url", help: "The account database." },
  DEPUTY_DATABASE_PASSWORD_FILE: { kind: "secret", help: "Its password." },
  DEPUTY_BENCH_ADDRESS: { kind: "address", help: "Where to listen." },
  DEPUTY_BENCH_STATEMENTS_FILE: { kind: "file", help: "A BarePlan." },
});
const log = createLogger("bare", config.DEPUTY_LOG_LEVEL);
dieLoudly(log);
const plan: BarePlan = JSON.parse(config.DEPUTY_BENCH_STATEMENTS_FILE);
const pool = openPool({
  url: config.DEPUTY_DATABASE_URL,
  password: config.DEPUTY_DATABASE_PASSWORD_FILE,
  applicationName: "bare",
  statementTimeoutMs: 20_000,
  maxConnections: 20,
});

async function run(operation: Operation, index: number, replaced: ReadonlyMap<unknown, string>) {
  const { sql, parameters } = plan.statements[operation][index] as Statement;
  const values = parameters.map((value) => replaced.get(value) ?? value);
  return (await pool.query({ name: `${operation} ${index}`, text: sql, values })).rows;
}

const message = (row: Row): Account =>
  Account.fromPartial({
    ...{ id: row.id, projectId: row.project_id, environment: row.environment, externalUserId: row.external_user_id },
    ...{ appSlug: row.app_slug, oauthAppId: row.oauth_app_id, name: row.name, error: row.error },
    ...{ state: AccountState[row.state], health: AccountHealth[row.health], authorizedScopes: row.authorized_scopes },
    ...{ createTime: row.create_time, updateTime: row.update_time },
  });

function operationOf({
  externalUserId,
  appSlug,
  pageToken,
}: { [Name in "externalUserId" | "appSlug" | "pageToken"]: string }) {
  if (externalUserId !== "") return "list by user";
  if (appSlug !== "") return "list by app";
  return pageToken === "" ? "page 1" : "page 1,000";
}

const handlers: Pick<Handlers<typeof AccountServiceDefinition>, "getAccount" | "listAccounts"> = {
  async getAccount({ accountId }) {
    const [row] = await run("get", 0, new Map([[plan.examples.accountId, accountId]]));
    return { account: message(row) };
  },
  async listAccounts(request) {
    const operation = operationOf(request);
    const replaced = new Map([
      [plan.examples.externalUserId, request.externalUserId],
      [plan.examples.appSlug, request.appSlug],
    ]);
    const rows: Row[] = await run(operation, 0, replaced);
    const isCounted = plan.statements[operation].length > 1;
    const [counted] = isCounted ? await run(operation, 1, replaced) : [{ count: rows.length }];
    const nextPageToken = rows.length > request.pageSize ? plan.pageToken : "";
    const accounts = rows.slice(0, request.pageSize).map(message);
    return { accounts, nextPageToken, totalSize: Number(counted.count) };
  },
};

await startServer({
  definition: AccountServiceDefinition,
  handlers: handlers as Handlers<typeof AccountServiceDefinition>,
  callers,
  authenticate: async () => {
    throw new Error("nobody comes with a token");
  },
  internalAddress: config.DEPUTY_BENCH_ADDRESS,
  tls: tlsIdentity(config),
  reflection: false,
  log,
});
