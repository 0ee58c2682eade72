// The handlers of OAuth: authorizations and the projects' own OAuth clients.
import type { Catalog } from "#libs/catalog.ts";
import { notFound } from "#libs/errors.ts";
import type { Handlers } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { actorOf } from "./audit-entries.ts";
import type { Authorizer } from "./authorize.ts";
import { credentialMessage, environmentName } from "./credential-messages.ts";
import { destroyOauthClient, putOauthClient } from "./oauth-client-changes.ts";
import { findApp } from "./own-apps.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";

/** What the handlers of this file need. */
export interface AuthorizationHandlerOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly authorizer: Authorizer;
}

type AuthorizationHandlers = Pick<
  Handlers<typeof CredentialVaultDefinition>,
  "startAuthorization" | "completeAuthorization" | "putOauthClient" | "destroyOauthClient"
>;

/** The handlers over their collaborators. */
export function authorizationHandlers(options: AuthorizationHandlerOptions): AuthorizationHandlers {
  return {
    startAuthorization: (request) =>
      options.authorizer.start({ ...request, environment: environmentName(request.environment) }),

    async completeAuthorization({ state, code, error, issuer, parameters }, call) {
      const by = { deadlineMs: call.deadlineMs, actor: actorOf(call) };
      const { row, identityName } = await options.authorizer.complete({ state, code, error, issuer, parameters }, by);
      return { credential: credentialMessage(row), identityName };
    },

    async putOauthClient({ projectId, oauthAppId, appSlug, clientId, clientSecrets, keepSecrets }, call) {
      if ((await findApp(options, { projectId, appSlug })) === undefined) throw notFound("app");
      const client = { projectId, oauthAppId, appSlug, clientId, secrets: clientSecrets, keepSecrets };
      await putOauthClient(options, client, actorOf(call));
      return {};
    },

    async destroyOauthClient(request, call) {
      await destroyOauthClient(options, request, actorOf(call));
      return {};
    },
  };
}
