// Who may call which method of the account service. API callers come straight to the public address with their token, or
// through the gateway, which passes the token on; the operator comes with a certificate.
import type { Admission, CallersTable } from "#libs/callers.ts";
import type { MethodName } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";

const operator: readonly Admission[] = [{ service: "operator" }];
/** Everybody: what is asked for is public, or the request itself holds the proof. */
const anybody: readonly Admission[] = [{}, { service: "gateway" }, { service: "operator" }];

type More = Pick<Admission, "connectToken" | "administrators">;

/** A caller whose token has the scope, and the operator. */
function api(scope: string, more: More = {}): readonly Admission[] {
  const { administrators = false } = more;
  return [
    { scope, ...more },
    { service: "gateway", scope, ...more },
    { service: "operator", administrators },
  ];
}

/** The same without plain members: what tells of everybody's accounts, or changes what is for all. */
function apiOfAdministrators(scope: string, more: More = {}): readonly Admission[] {
  return api(scope, { ...more, administrators: true });
}

/** The same, and a user's own browser. */
function apiAndUsers(scope: string): readonly Admission[] {
  return api(scope, { connectToken: true });
}

export const callers: CallersTable<MethodName<typeof AccountServiceDefinition>> = {
  createAccount: apiAndUsers("connect:accounts:write"),
  getAccount: [
    ...apiAndUsers("connect:accounts:read"),
    { service: "proxy", scope: "connect:proxy", connectToken: true },
  ],
  listAccounts: apiAndUsers("connect:accounts:read"),
  updateAccount: api("connect:accounts:write"),
  deleteAccount: apiAndUsers("connect:accounts:write"),
  revokeAllAccounts: api("connect:accounts:write"),
  listUsers: api("connect:users:read"),
  deleteUser: apiOfAdministrators("connect:users:write", { connectToken: true }),
  createConnectToken: api("connect:tokens:create"),
  validateConnectToken: anybody,
  startConnection: apiAndUsers("connect:accounts:write"),
  // The redirect brings no token: the state and the browser's binding are the proof.
  completeConnection: [{ service: "gateway" }],
  // A backend's word: in the user's own browser it would be worth nothing.
  verifyConnection: api("connect:accounts:write"),
  getConnection: apiAndUsers("connect:accounts:read"),
  // The handler refuses tokens, with a text that says why: a token has a project already.
  createProject: api("connect:projects:write"),
  getProject: api("connect:projects:read"),
  listProjects: api("connect:projects:read"),
  updateProject: apiOfAdministrators("connect:projects:write"),
  deleteProject: apiOfAdministrators("connect:projects:write"),
  listProjectApps: apiAndUsers("connect:projects:read"),
  createApiClient: operator,
  listApiClients: operator,
  rotateApiClientSecret: operator,
  deleteApiClient: operator,
  issueAccessToken: [...anybody, { service: "proxy" }],
  getTokenKeys: [...anybody, { service: "proxy" }, { service: "vault" }],
  // The catalog is public; own apps of projects are for callers with a token.
  listApps: anybody,
  getApp: anybody,
  createApp: apiOfAdministrators("connect:projects:write"),
  updateApp: apiOfAdministrators("connect:projects:write"),
  deleteApp: apiOfAdministrators("connect:projects:write"),
  createOauthApp: apiOfAdministrators("connect:projects:write"),
  getOauthApp: api("connect:projects:read"),
  listOauthApps: api("connect:projects:read"),
  updateOauthApp: apiOfAdministrators("connect:projects:write"),
  deleteOauthApp: apiOfAdministrators("connect:projects:write"),
  createAppOverride: apiOfAdministrators("connect:projects:write"),
  getAppOverride: api("connect:projects:read"),
  listAppOverrides: api("connect:projects:read"),
  updateAppOverride: apiOfAdministrators("connect:projects:write"),
  deleteAppOverride: apiOfAdministrators("connect:projects:write"),
  // An address may hold a secret of its receiver's.
  setWebhook: apiOfAdministrators("connect:projects:write"),
  getWebhook: apiOfAdministrators("connect:projects:read"),
  deleteWebhook: apiOfAdministrators("connect:projects:write"),
  rotateWebhookKey: apiOfAdministrators("connect:projects:write"),
  listEvents: apiOfAdministrators("connect:projects:read"),
  replayEvents: apiOfAdministrators("connect:projects:write"),
  watchAccounts: [{ service: "proxy" }, ...operator],
  // Entries tell of accounts, users and settings alike, so no scope for one of these is enough.
  listAuditEntries: apiOfAdministrators("connect:audit:read"),
};
