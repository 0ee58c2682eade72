// Who may call which method of the account service. API callers come straight to the public address with their token, or
// through the gateway, which passes the token on; the operator comes with a certificate.
import type { Admission, CallersTable } from "#libs/callers.ts";
import type { MethodName } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";

const operator: readonly Admission[] = [{ service: "operator" }];
/** Everybody: what is asked for is public, or the request itself holds the proof. */
const anybody: readonly Admission[] = [{}, { service: "gateway" }, { service: "operator" }];

/** A caller whose token has the scope, and the operator. */
function api(scope: string, more: Pick<Admission, "connectToken"> = {}): readonly Admission[] {
  return [{ scope, ...more }, { service: "gateway", scope, ...more }, ...operator];
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
  deleteUser: apiAndUsers("connect:users:write"),
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
  updateProject: api("connect:projects:write"),
  deleteProject: api("connect:projects:write"),
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
  createApp: api("connect:projects:write"),
  updateApp: api("connect:projects:write"),
  deleteApp: api("connect:projects:write"),
  createOauthApp: api("connect:projects:write"),
  getOauthApp: api("connect:projects:read"),
  listOauthApps: api("connect:projects:read"),
  updateOauthApp: api("connect:projects:write"),
  deleteOauthApp: api("connect:projects:write"),
  createAppOverride: api("connect:projects:write"),
  getAppOverride: api("connect:projects:read"),
  listAppOverrides: api("connect:projects:read"),
  updateAppOverride: api("connect:projects:write"),
  deleteAppOverride: api("connect:projects:write"),
  setWebhook: api("connect:projects:write"),
  getWebhook: api("connect:projects:read"),
  deleteWebhook: api("connect:projects:write"),
  rotateWebhookKey: api("connect:projects:write"),
  listEvents: api("connect:projects:read"),
  replayEvents: api("connect:projects:write"),
  watchAccounts: [{ service: "proxy" }, ...operator],
  // Entries tell of accounts, users and settings alike, so no scope for one of these is enough.
  listAuditEntries: api("connect:audit:read"),
};
