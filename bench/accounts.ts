// `npm run bench:accounts`: a million accounts, and whether reading them stays flat: get, list by user, list by app, page 1 and page
// 1,000 of an environment, through the true account service over gRPC with mutual TLS. Beside it, by turns, a bare server that
// runs the service's own statements (bare-accounts.ts): what is between the two is what the service costs. Asserted are plans and
// ratios; times depend on the machine, which client, servers and Postgres share. `--accounts=100000` takes another number and
// keeps no figures.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { openDatabase } from "#libs/database.ts";
import type { Tables } from "../services/account/schema.ts";
import {
  captureStatements,
  type Examples,
  environment,
  type Operation,
  operations,
  type Plan,
  pageSize,
  plansOf,
  projectId,
} from "./account-statements.ts";
import { type AccountClient, openAccountsStand, soon } from "./accounts-stand.ts";
import type { BarePlan } from "./bare-accounts.ts";
import { machine } from "./machine.ts";
import { at } from "./quantiles.ts";

const kept = 1_000_000;
const accounts = Number(process.argv.find((word) => word.startsWith("--accounts="))?.split("=")[1] ?? kept);
const rounds = 7;
const segmentMs = 1_000;
const warmUpMs = 500;
const callers = 8;
const mostGrowth = 1.5;
const indexes: Readonly<Record<Operation, string>> = {
  get: "accounts_pkey",
  "list by user": "accounts_by_user",
  "list by app": "accounts_by_app",
  "page 1": "accounts_in_order",
  "page 1,000": "accounts_in_order",
};

interface Segment {
  readonly perSecond: number;
  readonly p50: number;
  readonly p99: number;
}

let calls = 0;

const stand = await openAccountsStand(accounts, projectId);
try {
  console.log(`${accounts} accounts in ${stand.fillSeconds} s`);
  const service = await stand.startService();
  const { examples, pageToken } = await prepare(service);
  const db = openDatabase<Tables>({ ...stand.asService(), maxConnections: 1 });
  const statements = await captureStatements(db, examples).finally(() => db.destroy());
  const bare = await stand.startBare({ statements, examples, pageToken } satisfies BarePlan);
  const plans = {} as Record<Operation, readonly Plan[]>;
  for (const operation of operations) plans[operation] = await plansOf(stand, statements[operation]);
  const { segments, growth } = await measure(service, bare, pageToken);
  const figures = Object.fromEntries(operations.map((operation) => [operation, summary(segments[operation])]));
  console.table(
    Object.fromEntries(
      Object.entries(figures).map(([name, { service: mine, bare: least, share }]) => [
        name,
        { ...mine, "bare perSecond": least.perSecond, "bare p50": least.p50, "bare p99": least.p99, share },
      ]),
    ),
  );
  console.table(
    operations.flatMap((operation) =>
      plans[operation].map((plan) => ({ operation, ...plan, nodes: plan.nodes.join(" < ") })),
    ),
  );
  const pageGrowth = at(growth, 0.5);
  const checks: readonly (readonly [string, boolean])[] = [
    ...operations.map(
      (name) =>
        [
          `${name}: by ${indexes[name]}, no sort, no table read whole`,
          plans[name].every((plan) => isFlat(name, plan)),
        ] as const,
    ),
    [`page 1,000 takes at most ${mostGrowth} times as long as page 1: ${pageGrowth}`, pageGrowth <= mostGrowth],
  ];
  console.table(checks.map(([what, holds]) => ({ what, holds })));
  if (accounts === kept) {
    const file = join(import.meta.dirname, "results/accounts.json");
    const postgres = "embedded, on this machine: fsync on, shared_buffers 2 GB";
    const result = { machine: { ...machine(), postgres }, accounts, pageSize, callers, figures, pageGrowth, plans };
    await writeFile(file, `${JSON.stringify(result, undefined, 2)}\n`);
  }
  if (!checks.every(([, holds]) => holds)) process.exitCode = 1;
} finally {
  await stand.close();
}

/** Examples, and the true token of page 1,000: by way of larger pages, for a token says where and not how far. */
async function prepare(client: AccountClient): Promise<{ examples: Examples; pageToken: string }> {
  const before = 999 * pageSize;
  let [seen, pageToken, last] = [0, "", undefined as Date | undefined];
  let lastId = "";
  while (seen < before) {
    const size = Math.min(1_000, before - seen);
    const page = await client.listAccounts({ projectId, environment, pageSize: size, pageToken }, soon());
    seen += page.accounts.length;
    ({ nextPageToken: pageToken } = page);
    ({ id: lastId = "", createTime: last } = page.accounts.at(-1) ?? {});
    if (pageToken === "") throw new Error("there are fewer than a thousand pages");
  }
  if (last === undefined) throw new Error("no account has a time");
  const example = { accountId: lastId, externalUserId: "user_17", appSlug: "app_17" };
  return { examples: { ...example, after: { createTime: last, id: lastId } }, pageToken };
}

/** By turns, so that a machine that is slow for a moment is slow for all. */
async function measure(service: AccountClient, bare: AccountClient, pageToken: string) {
  const ids = await someIds(service, pageToken);
  const requests = requestsOf(ids, pageToken);
  const segments = {} as Record<Operation, { service: Segment[]; bare: Segment[] }>;
  const growth: number[] = [];
  for (const operation of operations) segments[operation] = { service: [], bare: [] };
  for (let round = 0; round < rounds; round += 1) {
    for (const operation of operations) {
      for (const [name, client] of Object.entries({ service, bare }) as ["service" | "bare", AccountClient][]) {
        if (round === 0) await segment(client, requests[operation], warmUpMs);
        segments[operation][name].push(await segment(client, requests[operation], segmentMs));
      }
    }
    const [first, late] = [segments["page 1"].service.at(-1), segments["page 1,000"].service.at(-1)];
    if (first !== undefined && late !== undefined) growth.push(late.p50 / first.p50);
  }
  return { segments, growth };
}

type Request = (client: AccountClient, number: number) => Promise<unknown>;

function requestsOf(ids: readonly string[], pageToken: string): Readonly<Record<Operation, Request>> {
  const whole = { projectId, environment, pageSize } as const;
  return {
    get: (client, n) => client.getAccount({ projectId, environment, accountId: ids[n % ids.length] ?? "" }, soon()),
    // 7919 is a prime: users from all over the table.
    "list by user": (client, n) =>
      client.listAccounts({ ...whole, externalUserId: `user_${(n * 7919) % (accounts / 10)}` }, soon()),
    "list by app": (client, n) => client.listAccounts({ ...whole, appSlug: `app_${n % 100}` }, soon()),
    "page 1": (client) => client.listAccounts(whole, soon()),
    "page 1,000": (client) => client.listAccounts({ ...whole, pageToken }, soon()),
  };
}

/** Accounts from the beginning of the table and from far behind. */
async function someIds(client: AccountClient, pageToken: string): Promise<readonly string[]> {
  const ids: string[] = [];
  for (const token of ["", pageToken]) {
    const page = await client.listAccounts({ projectId, environment, pageSize: 1_000, pageToken: token }, soon());
    ids.push(...page.accounts.map(({ id }) => id));
  }
  return ids;
}

async function segment(client: AccountClient, request: Request, durationMs: number): Promise<Segment> {
  const latencies: number[] = [];
  const startMs = performance.now();
  const worker = async () => {
    while (performance.now() - startMs < durationMs) {
      const callMs = performance.now();
      calls += 1;
      await request(client, calls);
      latencies.push(performance.now() - callMs);
    }
  };
  await Promise.all(Array.from({ length: callers }, worker));
  const perSecond = Math.round(latencies.length / ((performance.now() - startMs) / 1000));
  return { perSecond, p50: at(latencies, 0.5), p99: at(latencies, 0.99) };
}

/** Medians over the rounds, and the median of what share of the bare server's rate the service has. */
function summary({ service, bare }: { readonly service: readonly Segment[]; readonly bare: readonly Segment[] }) {
  const median = (of: readonly Segment[]): Segment => ({
    perSecond: at(
      of.map(({ perSecond }) => perSecond),
      0.5,
    ),
    p50: at(
      of.map(({ p50 }) => p50),
      0.5,
    ),
    p99: at(
      of.map(({ p99 }) => p99),
      0.5,
    ),
  });
  const shares = service.map(({ perSecond }, round) => perSecond / (bare[round]?.perSecond ?? Number.NaN));
  return { service: median(service), bare: median(bare), share: at(shares, 0.5) };
}

function isFlat(operation: Operation, { index, nodes }: Plan): boolean {
  return index === indexes[operation] && !nodes.some((node) => /Seq Scan|Sort|Bitmap/.test(node));
}
