// Every method of AccountService: who may call it, what it names, and a request that is good for the project whose things it
// names. The isolation tests are made of these rows, and so is the table in docs/operating.md; a method without a row fails.
import type { MethodName } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { binding, development } from "./harness.ts";
import { definitionOf, type Things } from "./isolation-things.ts";

export type Service = "account" | "gateway" | "operator" | "proxy" | "vault";

/**
 * What a member who is neither owner nor admin of the workspace gets:
 * `everything` what the project itself would; `own` that, of the accounts that the member may see or delete; `view` and `manage`
 * as the matrix of docs/accounts.md has it; `nothing` a refusal.
 */
export type Members = "everything" | "own" | "view" | "manage" | "nothing";

export interface Row {
  /** The scope that a token must have; without one no token is asked for. */
  readonly scope?: string;
  /** Whether a connect token will do. */
  readonly connectTokens?: true;
  /** Whether nobody needs a right, or which services alone come in by their certificate; else tokens, and the operator. */
  readonly only?: "anybody" | readonly Service[];
  /** Services beside these. */
  readonly also?: readonly Service[];
  readonly members: Members;
  /** What it names of a project, as refusals call it; without one it lists, makes or sets what is the caller's own. */
  readonly names?: string;
  /** Why an access token that gets in is refused: it is for connect tokens, or for no token at all. */
  readonly refusesTokens?: "CONNECT_TOKEN_REQUIRED" | "OPERATOR_REQUIRED";
  /** Why the good request is refused all the same, at its end. */
  readonly ends?: string;
  readonly request: (things: Things) => object;
}

const environment = development;
const reads = { scope: "connect:projects:read" };
const writes = { scope: "connect:projects:write", members: "nothing" } as const;
const readsAccounts = { scope: "connect:accounts:read", connectTokens: true } as const;
const writesAccounts = { scope: "connect:accounts:write", connectTokens: true } as const;
const operators = { only: ["operator"], members: "nothing" } as const;
const anybody = { only: "anybody", members: "everything" } as const;
const account = (things: Things) => ({ environment, accountId: things.accountId });
const oauthApp = ({ oauthAppId }: Things) => ({ oauthAppId });
const override = ({ appOverrideId }: Things) => ({ appOverrideId });
const client = ({ clientId }: Things) => ({ clientId });
const here = () => ({ environment });
const none = () => ({});

export const rows: Readonly<Record<MethodName<AccountServiceDefinition>, Row>> = {
  createAccount: {
    ...writesAccounts,
    ...{ members: "manage", names: "account" },
    request: ({ user, ...things }) => ({
      ...account({ user, ...things }),
      ...{ externalUserId: user, appSlug: "sandbox" },
      credential: { $case: "grant", value: { accessToken: "another-access-token" } },
    }),
  },
  getAccount: { ...readsAccounts, members: "view", names: "account", request: account },
  listAccounts: { ...readsAccounts, members: "own", request: here },
  updateAccount: {
    scope: "connect:accounts:write",
    ...{ members: "manage", names: "account" },
    request: (things) => ({ ...account(things), name: "Renamed" }),
  },
  deleteAccount: { ...writesAccounts, members: "manage", names: "account", request: account },
  revokeAllAccounts: {
    scope: "connect:accounts:write",
    members: "own",
    request: ({ user: value }) => ({ environment, target: { $case: "externalUserId", value } }),
  },
  listUsers: { scope: "connect:users:read", members: "own", request: here },
  deleteUser: {
    scope: "connect:users:write",
    ...{ connectTokens: true, members: "nothing" },
    request: ({ user }) => ({ environment, externalUserId: user }),
  },
  createConnectToken: {
    scope: "connect:tokens:create",
    ...{ members: "everything", names: "OAuth app" },
    request: ({ user, oauthAppId }) => ({ environment, externalUserId: user, oauthAppId }),
  },
  validateConnectToken: { ...anybody, request: ({ connectToken }) => ({ connectToken, appSlug: "sandbox" }) },
  startConnection: {
    ...writesAccounts,
    ...{ members: "manage", names: "account", refusesTokens: "CONNECT_TOKEN_REQUIRED" },
    request: ({ accountId }) => ({ appSlug: "sandbox", accountId, browserBinding: binding }),
  },
  completeConnection: {
    ...{ only: ["gateway"], members: "everything" },
    request: ({ state }) => ({ state, code: "code", browserBinding: binding }),
  },
  verifyConnection: {
    scope: "connect:accounts:write",
    ...{ members: "view", names: "connection" },
    request: ({ user, connectionId, verifier }) => ({ environment, externalUserId: user, connectionId, verifier }),
  },
  getConnection: {
    ...readsAccounts,
    ...{ members: "view", names: "connection" },
    request: ({ connectionId }) => ({ environment, connectionId }),
  },
  createProject: {
    scope: "connect:projects:write",
    ...{ members: "nothing", refusesTokens: "OPERATOR_REQUIRED" },
    request: () => ({ name: "New" }),
  },
  getProject: { ...reads, members: "everything", request: none },
  listProjects: { ...reads, members: "everything", request: none },
  updateProject: { ...writes, request: () => ({ name: "Renamed" }) },
  deleteProject: { ...writes, ends: "PROJECT_IN_USE", request: none },
  listProjectApps: { ...reads, connectTokens: true, members: "everything", request: none },
  createApiClient: { ...operators, request: none },
  listApiClients: { ...operators, request: none },
  rotateApiClientSecret: { ...operators, names: "API client", request: client },
  deleteApiClient: { ...operators, names: "API client", request: client },
  issueAccessToken: {
    ...{ ...anybody, also: ["proxy"] },
    request: ({ clientId, clientSecret }) => ({
      grant: { $case: "clientCredentials", value: { clientId, clientSecret } },
    }),
  },
  getTokenKeys: { ...anybody, also: ["proxy", "vault"], request: none },
  listApps: { ...anybody, request: none },
  getApp: { ...anybody, names: "app", request: ({ ownApp }) => ({ appSlug: ownApp }) },
  createApp: { ...writes, request: () => ({ definition: definitionOf("another") }) },
  updateApp: {
    ...{ ...writes, names: "app" },
    request: ({ ownApp }) => ({ appSlug: ownApp, definition: definitionOf(ownApp) }),
  },
  deleteApp: { ...writes, names: "app", request: ({ ownApp }) => ({ appSlug: ownApp }) },
  createOauthApp: { ...writes, request: () => ({ appSlug: "sandbox", clientId: "another", clientSecret: "secret" }) },
  getOauthApp: { ...reads, members: "everything", names: "OAuth app", request: oauthApp },
  listOauthApps: { ...reads, members: "everything", request: none },
  updateOauthApp: {
    ...{ ...writes, names: "OAuth app" },
    request: (things) => ({ ...oauthApp(things), clientSecret: "another-secret" }),
  },
  deleteOauthApp: {
    ...{ ...writes, names: "OAuth app" },
    request: (things) => ({ ...oauthApp(things), revokeAccounts: true }),
  },
  createAppOverride: { ...writes, request: () => ({ appSlug: "tenant_key", name: "Another" }) },
  getAppOverride: { ...reads, members: "everything", names: "app override", request: override },
  listAppOverrides: { ...reads, members: "everything", request: none },
  updateAppOverride: {
    ...{ ...writes, names: "app override" },
    request: (things) => ({ ...override(things), name: "Renamed" }),
  },
  deleteAppOverride: { ...writes, names: "app override", request: override },
  setWebhook: { ...writes, request: () => ({ environment, url: "https://hooks.example.com/other" }) },
  getWebhook: { ...reads, members: "nothing", request: here },
  deleteWebhook: { ...writes, request: here },
  rotateWebhookKey: { ...writes, names: "webhook", request: here },
  listEvents: { ...reads, members: "nothing", request: ({ accountId }) => ({ environment, accountId }) },
  replayEvents: {
    ...{ ...writes, names: "webhook" },
    request: ({ eventId }) => ({ environment, eventIds: [eventId] }),
  },
  watchAccounts: { only: ["proxy", "operator"], members: "everything", request: none },
  listAuditEntries: { scope: "connect:audit:read", members: "nothing", request: none },
};

const membersTexts: Readonly<Record<Members, string>> = {
  everything: "the same",
  own: "of their accounts",
  view: "view",
  manage: "manage",
  nothing: "no",
};

/** The rows as docs/operating.md shows them: one line for all methods that are alike. */
export function documentation(): string {
  const lines = new Map<string, string[]>();
  for (const [method, row] of Object.entries(rows)) {
    const name = `\`${method[0]?.toUpperCase()}${method.slice(1)}\``;
    lines.set(ways(row), [...(lines.get(ways(row)) ?? []), name]);
  }
  const head = "| methods | scope or caller | connect token | other members |\n| --- | --- | --- | --- |\n";
  return head + [...lines].map(([kind, names]) => `| ${names.join(", ")} | ${kind} |`).join("\n");
}

function ways({ scope = "", connectTokens, only, also = [], refusesTokens, members }: Row): string {
  if (typeof only === "object") return `${only.join(", ")} | - | -`;
  if (only === "anybody") return `${["anybody", ...also].join(", ")} | - | -`;
  if (refusesTokens === "OPERATOR_REQUIRED") return "operator | - | -";
  const kind = refusesTokens === undefined ? (connectTokens ? "yes" : "no") : "only";
  return `\`${scope}\` | ${kind} | ${membersTexts[members]}`;
}
