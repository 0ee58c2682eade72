// StartConnection: everything that can be refused is refused before the vault is asked, so that a user who reaches the
// provider's page can also come back. The account's id is reserved here and the account made at the end.
import { invalidField, notFound, StatusError } from "#libs/errors.ts";
import { digest, newId } from "#libs/ids.ts";
import type { StartConnectionRequest } from "#proto/deputy/account/v1/connect.ts";
import { getAccount } from "./accounts.ts";
import { checkBaseUrl, chooseApp, chooseOauthAppId, chooseScopes, completeFields } from "./app-choice.ts";
import { findUsableConnectToken } from "./connect-tokens.ts";
import { insertConnection } from "./connections.ts";
import { type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { chooseOauthApp } from "./oauth-apps.ts";
import { applyOverride } from "./override-choice.ts";
import type { CatalogOf } from "./own-apps.ts";
import type { AccountDatabase, ConnectTokenRow } from "./schema.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "startAuthorization">;
  readonly catalogOf: CatalogOf;
  readonly redirectUri: string;
}

export function startConnectionHandler(
  { db, vault, catalogOf, redirectUri }: Collaborators,
  now: () => number,
): HandlerGroup<"startConnection"> {
  /** The vault's request for an authorization. */
  async function plan(request: StartConnectionRequest, token: ConnectTokenRow) {
    const app = chooseApp(await catalogOf(token.projectId), request.appSlug, token);
    if (app.auth !== "oauth2") throw invalidField("app_slug", "is an app without OAuth: use CreateAccount");
    const override = await applyOverride(db, token.projectId, app, request.appOverrideId, request.fields);
    const oauthAppId = chooseOauthAppId(request.oauthAppId, token, override);
    const oauthApp = await chooseOauthApp(db, token.projectId, app.slug, oauthAppId);
    const scopes = [...chooseScopes(app, oauthApp, request.scopeProfile)];
    // Values travel in the clear until they are sealed, so secret ones have no place here.
    const openFields = app.custom_fields.filter(({ secret }) => !secret);
    const fields = completeFields(openFields, override.fields);
    checkBaseUrl(app, fields);
    if (request.accountId !== "") {
      const account = await getAccount(db, token, request.accountId);
      if (account.appSlug !== app.slug) throw notFound("account");
    }
    const accountId = request.accountId || newId("apn");
    const { projectId, environment, externalUserId } = token;
    return {
      projectId,
      environment,
      externalUserId,
      accountId,
      appSlug: app.slug,
      oauthAppId: oauthApp.id,
      redirectUri,
      scopes,
      fields,
    };
  }

  return {
    async startConnection(request, call) {
      const token = await findUsableConnectToken(db, call.caller.token, new Date(now()));
      if (token === undefined) throw connectTokenRequired();
      const authorization = await plan(request, token);
      const started = await vault.startAuthorization(authorization, ownRight(call));
      const connectionId = newId("con");
      const createTime = new Date(now());
      const expireTime = started.expireTime ?? createTime;
      const { projectId, environment, externalUserId, accountId, appSlug, oauthAppId } = authorization;
      await insertConnection(db, {
        projectId,
        id: connectionId,
        environment,
        externalUserId,
        connectTokenId: token.id,
        appSlug,
        oauthAppId,
        accountId,
        reconnects: request.accountId !== "",
        stateDigest: started.stateDigest,
        browserBindingDigest: digest(request.browserBinding),
        createTime,
        expireTime,
      });
      return { connectionId, authorizationUrl: started.authorizationUrl, expireTime };
    },
  };
}

function connectTokenRequired(): StatusError {
  const message = "A connection is started by its user, with a connect token.";
  return new StatusError("PERMISSION_DENIED", "CONNECT_TOKEN_REQUIRED", message);
}
