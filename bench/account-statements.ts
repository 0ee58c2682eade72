// The statements that the account service truly runs, taken from its own code, and how Postgres runs them. The plan is the one
// that it keeps for a prepared statement, as the service's are.
import { openConnection } from "#libs/database.ts";
import { getAccount, listAccounts } from "../services/account/accounts.ts";
import type { PageKey } from "../services/account/pages.ts";
import type { AccountDatabase } from "../services/account/schema.ts";
import type { AccountsStand } from "./accounts-stand.ts";

/** What a client asks for. */
export const operations = ["get", "list by user", "list by app", "page 1", "page 1,000"] as const;
export type Operation = (typeof operations)[number];

/** A statement with what goes into it. */
export interface Statement {
  readonly sql: string;
  readonly parameters: readonly unknown[];
}

/** One example of each operation. */
export interface Examples {
  readonly accountId: string;
  readonly externalUserId: string;
  readonly appSlug: string;
  /** The last account of page 999. */
  readonly after: PageKey;
}

/** Statements of each operation, in the order in which they run. */
export type Statements = Readonly<Record<Operation, readonly Statement[]>>;

/** What is read of a plan. */
export interface Plan {
  readonly index: string;
  readonly nodes: readonly string[];
  /** Pages of 8 kB. */
  readonly pages: number;
  readonly milliseconds: number;
}

export const projectId = "proj_bench";
export const environment = 1;
export const pageSize = 100;

/** Runs each operation once and keeps its statements. */
export async function captureStatements(db: AccountDatabase, examples: Examples): Promise<Statements> {
  const whole = { projectId, environment, externalUserId: "" };
  const list = (more: object, after?: PageKey) => (recorded: AccountDatabase) =>
    listAccounts(recorded, { ...whole, ...more }, { size: pageSize, after });
  return {
    get: await capture(db, (recorded) =>
      getAccount(recorded, whole, examples.accountId, { actor: undefined, operation: "view" }),
    ),
    "list by user": await capture(db, list({ externalUserId: examples.externalUserId })),
    "list by app": await capture(db, list({ appSlug: examples.appSlug })),
    "page 1": await capture(db, list({})),
    "page 1,000": await capture(db, list({}, examples.after)),
  };
}

async function capture(
  db: AccountDatabase,
  run: (db: AccountDatabase) => Promise<unknown>,
): Promise<readonly Statement[]> {
  const statements: Statement[] = [];
  // Parts of a statement are transformed as well; only what has a result was run.
  const compiled = new Map<unknown, Statement>();
  await run(
    db.withPlugin({
      transformQuery({ node, queryId }) {
        const { sql, parameters } = db.getExecutor().compileQuery(node, queryId);
        compiled.set(queryId.queryId, { sql, parameters });
        return node;
      },
      async transformResult({ result, queryId }) {
        statements.push(compiled.get(queryId.queryId) ?? { sql: "", parameters: [] });
        return result;
      },
    }),
  );
  return statements;
}

// Postgres plans a prepared statement anew five times, and may then settle on one plan for all parameters.
const settledAfter = 8;

/** The plan of each of an operation's statements. */
export async function plansOf(stand: AccountsStand, statements: readonly Statement[]): Promise<readonly Plan[]> {
  const connection = await openConnection(stand.asService());
  const plans: Plan[] = [];
  try {
    for (const [index, { sql, parameters }] of statements.entries()) {
      await connection.query(`prepare statement_${index} as ${sql}`);
      const literals = parameters.map(literal).join(", ");
      const execute = `execute statement_${index}${literals && `(${literals})`}`;
      let plan: PlanNode | undefined;
      for (let run = 0; run < settledAfter; run += 1) {
        const [row] = await connection.query<{ "QUERY PLAN": readonly [{ Plan: PlanNode }] }>(
          `explain (analyze, buffers, format json) ${execute}`,
        );
        plan = row?.["QUERY PLAN"][0].Plan;
      }
      if (plan === undefined) throw new Error("Postgres gave no plan");
      plans.push(factsOf(plan));
    }
    return plans;
  } finally {
    await connection.end();
  }
}

interface PlanNode {
  readonly "Node Type": string;
  readonly "Index Name"?: string;
  readonly "Actual Total Time": number;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}

function factsOf(plan: PlanNode): Plan {
  const nodes = nodesOf(plan);
  return {
    index: [...new Set(nodes.flatMap((node) => node["Index Name"] ?? []))].join(),
    nodes: nodes.map((node) => node["Node Type"]),
    pages: plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
    milliseconds: plan["Actual Total Time"],
  };
}

function nodesOf(node: PlanNode): readonly PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(nodesOf)];
}

function literal(value: unknown): string {
  if (typeof value === "number") return String(value);
  const text = value instanceof Date ? value.toISOString() : String(value);
  return `'${text.replaceAll("'", "''")}'`;
}
