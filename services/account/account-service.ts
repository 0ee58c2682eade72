// The AccountService as a function from what it works with to its handlers, one file per group of methods.
import type { Catalog } from "#libs/catalog.ts";
import type { Handlers } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { accountHandlers } from "./account-handlers.ts";
import { apiClientHandlers } from "./api-client-handlers.ts";
import { appHandlers } from "./app-handlers.ts";
import { appOverrideHandlers } from "./app-override-handlers.ts";
import { auditHandlers } from "./audit-handlers.ts";
import { completeConnectionHandler } from "./complete-connection.ts";
import { connectHandlers } from "./connect-handlers.ts";
import { createAccountHandler } from "./create-account.ts";
import { deleteOauthAppHandler } from "./delete-oauth-app.ts";
import { deleteProjectHandler } from "./delete-project.ts";
import { deleteUserHandler } from "./delete-user.ts";
import type { Vault } from "./handler-group.ts";
import { oauthAppHandlers } from "./oauth-app-handlers.ts";
import { ownAppHandlers } from "./own-app-handlers.ts";
import { catalogsOver } from "./own-apps.ts";
import { projectHandlers } from "./project-handlers.ts";
import { revocationHandlers } from "./revoke-accounts.ts";
import type { AccountDatabase } from "./schema.ts";
import { startConnectionHandler } from "./start-connection.ts";
import { tokenHandlers } from "./token-handlers.ts";
import type { TokenKeys } from "./token-keys.ts";
import { userHandlers } from "./user-handlers.ts";
import { verifyConnectionHandler } from "./verify-connection.ts";
import { type AccountSignals, watchAccountsHandler } from "./watch-accounts.ts";
import { webhookHandlers } from "./webhook-handlers.ts";

/** What the service works with. */
export interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Vault;
  readonly catalog: Catalog;
  readonly tokenKeys: TokenKeys;
  readonly signals: AccountSignals;
  /** Where browsers reach the gateway: base of connect links and of the redirect URI registered at providers. */
  readonly gatewayUrl: string;
  /** How many external users the development environment of a project takes; 0 for any number. */
  readonly developmentUsers: number;
  /** `host:port` of webhooks that may be on loopback: development only. */
  readonly exemptTargets: readonly string[];
}

/** `now` gives milliseconds since 1970. */
export function accountService(
  { db, vault, catalog, tokenKeys, signals, gatewayUrl, developmentUsers, exemptTargets }: Collaborators,
  now: () => number,
): Handlers<typeof AccountServiceDefinition> {
  const redirectUri = new URL("/oauth/callback", gatewayUrl).href;
  const catalogOf = catalogsOver(db, catalog);
  const revocations = revocationHandlers({ db, vault }, now);
  return {
    ...projectHandlers({ db, catalogOf }, now),
    ...deleteProjectHandler({ db, vault }, now),
    ...apiClientHandlers({ db }, now),
    ...tokenHandlers({ db, tokenKeys }, now),
    ...userHandlers({ db }),
    ...auditHandlers({ db }),
    ...appHandlers({ catalog, catalogOf }),
    ...ownAppHandlers({ db, vault, catalog, catalogOf, ...revocations }, now),
    ...oauthAppHandlers({ db, vault, catalogOf, redirectUri }, now),
    ...deleteOauthAppHandler({ db, vault, revokeAllAccounts: revocations.revokeAllAccounts }, now),
    ...appOverrideHandlers({ db, catalogOf }, now),
    ...connectHandlers({ db, catalogOf, gatewayUrl, developmentUsers }, now),
    ...startConnectionHandler({ db, vault, catalogOf, redirectUri }, now),
    ...completeConnectionHandler({ db, vault }, now),
    ...verifyConnectionHandler({ db, vault, catalogOf, developmentUsers }, now),
    ...createAccountHandler({ db, vault, catalogOf, developmentUsers }, now),
    ...accountHandlers({ db }, now),
    ...watchAccountsHandler({ db, signals }),
    ...revocations,
    ...deleteUserHandler({ db, vault }, now),
    ...webhookHandlers({ db, vault, exemptTargets }, now),
  };
}
