// Who may call the vault: the account service keeps credentials, proxies lease, operators look after the keys. Nobody from
// outside: there is no public listener. A lease needs both the proxy's certificate and the token of whom the request is for,
// so that a stolen certificate alone leases nothing; a reveal needs the account service's and a token with a scope of its own.
import type { Admission, CallersTable } from "#libs/callers.ts";
import type { MethodName } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";

const account: readonly Admission[] = [{ service: "account" }];
const operator: readonly Admission[] = [{ service: "operator" }];
/** What a lease takes; RenewLeases asks it of each renewal. */
export const proxyForCaller: Admission = { service: "proxy", scope: "connect:proxy", connectToken: true };

/** The ways in, for each method. */
export const vaultCallers: CallersTable<MethodName<typeof CredentialVaultDefinition>> = {
  storeCredential: account,
  startAuthorization: account,
  completeAuthorization: account,
  // A proxy's caller whose upstream refuses the access token.
  refreshCredential: [...account, proxyForCaller],
  getCredential: account,
  // Outside of `connect:*`, which API clients have to connect and use accounts. Not for connect tokens, whatever their scopes.
  revealCredential: [{ service: "account", scope: "credentials:reveal" }],
  // The operator's are the tombstones: what was destroyed since a backup is destroyed again after it was restored.
  destroyCredentials: [...account, ...operator],
  eraseUser: account,
  leaseInjection: [proxyForCaller],
  // Each renewal carries the token of its caller.
  renewLeases: [{ service: "proxy" }],
  watchLeases: [{ service: "proxy" }],
  putOauthClient: account,
  destroyOauthClient: account,
  listCredentialChanges: account,
  createWebhookKey: account,
  signWebhook: account,
  destroyWebhookKey: account,
  putApp: account,
  destroyApp: account,
  exportCredentials: operator,
  importCredentials: operator,
  rotateKeys: operator,
  getVaultStatus: operator,
};
