// StartConnection: everything that can be refused is refused before the vault is asked, so that a user who reaches the
// provider's page can also come back. The account's id is reserved here and the account made at the end. A user's own OAuth
// client goes to the vault under an id that no list shows, for this one account.
import type { CatalogApp } from "#libs/catalog.ts";
import { invalidField, notFound, StatusError } from "#libs/errors.ts";
import { digest, newId } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import type { StartConnectionRequest } from "#proto/deputy/account/v1/connect.ts";
import { reserveAccount } from "./account-reservations.ts";
import { getAccount } from "./accounts.ts";
import { checkBaseUrl, chooseApp, chooseOauthAppId, chooseScopes, completeFields } from "./app-choice.ts";
import { actorOfToken, findUsableConnectToken, invalidConnectToken, lockUsableConnectToken } from "./connect-tokens.ts";
import { insertConnection } from "./connections.ts";
import { type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { chooseOauthApp } from "./oauth-apps.ts";
import { applyOverride, type OverrideChoice } from "./override-choice.ts";
import type { CatalogOf } from "./own-apps.ts";
import { insertOwnClient } from "./own-oauth-clients.ts";
import type { AccountDatabase, ConnectTokenRow } from "./schema.ts";
import { reconnectUnverifiable } from "./verification.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "startAuthorization" | "putOauthClient">;
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
    const oauthApp = await clientOf(request, token, { app, override });
    const scopes = [...chooseScopes(app, oauthApp, request.scopeProfile)];
    // Values travel in the clear until they are sealed, so secret ones have no place here.
    const openFields = app.custom_fields.filter(({ secret }) => !secret);
    const fields = completeFields(openFields, override.fields);
    checkBaseUrl(app, fields);
    if (request.accountId !== "") {
      if (token.requireVerification) throw reconnectUnverifiable();
      const account = await getAccount(db, token, request.accountId, {
        actor: actorOfToken(token),
        operation: "manage",
      });
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
      allScopesRequired: !token.allowProgressiveScopes,
    };
  }

  /** The project's OAuth app to connect with, or the user's own, which has no more than the app's scopes. */
  async function clientOf(
    { customOauthClient, oauthAppId }: StartConnectionRequest,
    token: ConnectTokenRow,
    { app, override }: { app: CatalogApp; override: OverrideChoice },
  ) {
    const chosen = chooseOauthAppId(oauthAppId, token, override);
    if (customOauthClient === undefined) return chooseOauthApp(db, token.projectId, app.slug, chosen);
    if (chosen !== "") throw invalidField("custom_oauth_client", "does not go with an OAuth app of the project");
    return { id: newId("oac"), scopes: [], additionalScopes: [] };
  }

  /** Hands the user's own client to the vault. */
  async function keepOwnClient(
    request: StartConnectionRequest,
    authorization: Awaited<ReturnType<typeof plan>>,
    call: Call,
  ) {
    if (request.customOauthClient === undefined) return;
    const { clientId, clientSecret } = request.customOauthClient;
    const { projectId, oauthAppId, accountId, appSlug } = authorization;
    await insertOwnClient(db, { projectId, oauthAppId, accountId, createTime: new Date(now()) });
    const clientSecrets = clientSecret === "" ? [] : [clientSecret];
    await vault.putOauthClient({ projectId, oauthAppId, appSlug, clientId, clientSecrets }, ownRight(call));
  }

  return {
    async startConnection(request, call) {
      const token = await findUsableConnectToken(db, call.caller.token, new Date(now()));
      if (token === undefined) throw connectTokenRequired();
      const authorization = await plan(request, token);
      await keepOwnClient(request, authorization, call);
      const started = await vault.startAuthorization(authorization, ownRight(call));
      const connectionId = newId("con");
      const createTime = new Date(now());
      const expireTime = started.expireTime ?? createTime;
      const { projectId, environment, externalUserId, accountId, appSlug, oauthAppId } = authorization;
      const reconnects = request.accountId !== "";
      const connection = {
        projectId,
        id: connectionId,
        environment,
        externalUserId,
        connectTokenId: token.id,
        appSlug,
        oauthAppId,
        accountId,
        reconnects,
        stateDigest: started.stateDigest,
        browserBindingDigest: digest(request.browserBinding),
        createTime,
        expireTime,
      };
      await db.transaction().execute(async (tx) => {
        // Used or ended while the vault was asked.
        if (!(await lockUsableConnectToken(tx, token, createTime))) throw invalidConnectToken();
        if (!reconnects) await reserveAccount(tx, connection, createTime);
        await insertConnection(tx, connection);
      });
      return { connectionId, authorizationUrl: started.authorizationUrl, expireTime };
    },
  };
}

function connectTokenRequired(): StatusError {
  const message = "A connection is started by its user, with a connect token.";
  return new StatusError("PERMISSION_DENIED", "CONNECT_TOKEN_REQUIRED", message);
}
