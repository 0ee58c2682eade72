// StartConnection: everything that can be refused is refused before the vault is asked, so that a user who reaches the
// provider's page can also come back. The account's id is reserved here and the account made at the end.
import type { Catalog } from "#libs/catalog.ts";
import { invalidField, notFound, StatusError } from "#libs/errors.ts";
import { digest, newId } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import type { StartConnectionRequest } from "#proto/deputy/account/v1/connect.ts";
import { getAccount } from "./accounts.ts";
import { checkBaseUrl, chooseApp, chooseOauthAppId, chooseScopes, completeFields } from "./app-choice.ts";
import { getConnectToken, invalidConnectToken } from "./connect-tokens.ts";
import { insertConnection } from "./connections.ts";
import { type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { chooseOauthApp } from "./oauth-apps.ts";
import type { AccountDatabase, ConnectTokenRow } from "./schema.ts";
import { refuseUnbuilt } from "./unbuilt.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "startAuthorization">;
  readonly catalog: Catalog;
  readonly redirectUri: string;
}

export function startConnectionHandler(
  { db, vault, catalog, redirectUri }: Collaborators,
  now: () => number,
): HandlerGroup<"startConnection"> {
  /** The vault's request for an authorization. */
  async function plan(request: StartConnectionRequest, token: ConnectTokenRow) {
    const app = chooseApp(catalog, request.appSlug, token);
    if (app.auth !== "oauth2") throw invalidField("app_slug", "is an app without OAuth: use CreateAccount");
    const oauthAppId = chooseOauthAppId(request.oauthAppId, token);
    const oauthApp = await chooseOauthApp(db, token.project_id, app.slug, oauthAppId);
    const scopes = [...chooseScopes(app, oauthApp, request.scopeProfile)];
    // Values travel in the clear until they are sealed, so secret ones have no place here.
    const openFields = app.custom_fields.filter(({ secret }) => !secret);
    const fields = completeFields(openFields, request.fields);
    checkBaseUrl(app, fields);
    const scope = {
      projectId: token.project_id,
      environment: token.environment,
      externalUserId: token.external_user_id,
    };
    if (request.accountId !== "") {
      const account = await getAccount(db, scope, request.accountId);
      if (account.app_slug !== app.slug) throw notFound("account");
    }
    const accountId = request.accountId || newId("apn");
    return { ...scope, accountId, appSlug: app.slug, oauthAppId: oauthApp.id, redirectUri, scopes, fields };
  }

  return {
    async startConnection(request, call) {
      refuseUnbuilt("app_override_id", request.appOverrideId);
      const token = await usableConnectToken(db, call, new Date(now()));
      if (token === undefined) throw connectTokenRequired();
      const authorization = await plan(request, token);
      const started = await vault.startAuthorization(authorization, ownRight(call));
      const connectionId = newId("con");
      const createTime = new Date(now());
      const expireTime = started.expireTime ?? createTime;
      await insertConnection(db, {
        project_id: token.project_id,
        id: connectionId,
        environment: token.environment,
        external_user_id: token.external_user_id,
        connect_token_id: token.id,
        app_slug: authorization.appSlug,
        oauth_app_id: authorization.oauthAppId,
        account_id: authorization.accountId,
        reconnects: request.accountId !== "",
        state_digest: started.stateDigest,
        browser_binding_digest: digest(request.browserBinding),
        create_time: createTime,
        expire_time: expireTime,
      });
      return { connectionId, authorizationUrl: started.authorizationUrl, expireTime };
    },
  };
}

/** The unused connect token that the caller came with; undefined for a caller with a right of its own. */
export async function usableConnectToken(
  db: AccountDatabase,
  { caller: { token } }: Call,
  time: Date,
): Promise<ConnectTokenRow | undefined> {
  if (token?.externalUserId === undefined) return undefined;
  const row = await getConnectToken(db, token.projectId, token.subject);
  if (row.claimed_by !== null || row.expire_time <= time) throw invalidConnectToken();
  return row;
}

function connectTokenRequired(): StatusError {
  const message = "A connection is started by its user, with a connect token.";
  return new StatusError("PERMISSION_DENIED", "CONNECT_TOKEN_REQUIRED", message);
}
