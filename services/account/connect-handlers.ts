// Connect tokens, and connections as their starter sees them. How a connection starts and ends is in start-connection.ts
// and complete-connection.ts.
import type { CatalogApp } from "#libs/catalog.ts";
import { invalidField, StatusError } from "#libs/errors.ts";
import type { CreateConnectTokenRequest, ValidateConnectTokenRequest } from "#proto/deputy/account/v1/connect.ts";
import { ValidateConnectTokenResponse } from "#proto/deputy/account/v1/connect.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { getAccount } from "./accounts.ts";
import { chooseApp, chooseOauthAppId, getNamedApp } from "./app-choice.ts";
import { findConnectToken, insertConnectToken, invalidConnectToken } from "./connect-tokens.ts";
import { getConnection } from "./connections.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { appMessage, connectionMessage } from "./messages.ts";
import { chooseOauthApp, getOauthApp } from "./oauth-apps.ts";
import { applyOverride, chooseOverride } from "./override-choice.ts";
import type { CatalogOf } from "./own-apps.ts";
import { ensureUser, getProject } from "./projects.ts";
import type { AccountDatabase, ConnectTokenRow, EnvironmentNumber } from "./schema.ts";
import { requestedScopes } from "./scopes.ts";
import { refuseUnbuilt } from "./unbuilt.ts";

const maxLifetimeSeconds = 14_400;

export function connectHandlers(
  { db, catalogOf, gatewayUrl }: { db: AccountDatabase; catalogOf: CatalogOf; gatewayUrl: string },
  now: () => number,
): HandlerGroup<"createConnectToken" | "validateConnectToken" | "getConnection"> {
  /** The slug of the app that the token names, and a check that its OAuth app goes with it. */
  async function boundApp({ projectId, appSlug, oauthAppId }: CreateConnectTokenRequest): Promise<string> {
    const app = appSlug === "" ? undefined : getNamedApp(await catalogOf(projectId), appSlug);
    if (oauthAppId === "") return app?.slug ?? "";
    if (app !== undefined) await chooseOauthApp(db, projectId, app.slug, oauthAppId);
    return app?.slug ?? (await getOauthApp(db, projectId, oauthAppId)).appSlug;
  }

  /** The app that a token is asked about: named, or known by the account to be reconnected or by the app override. */
  async function appInQuestion(request: ValidateConnectTokenRequest, token: ConnectTokenRow): Promise<CatalogApp> {
    const catalog = await catalogOf(token.projectId);
    if (request.accountId === "") {
      const override = await chooseOverride(db, token.projectId, request.appOverrideId);
      return chooseApp(catalog, request.appSlug || override.appSlug, token);
    }
    const { appSlug } = await getAccount(db, token, request.accountId);
    const app = chooseApp(catalog, appSlug, token);
    if (request.appSlug !== "" && getNamedApp(catalog, request.appSlug) !== app) {
      throw invalidField("app_slug", "is not the app of the account");
    }
    return app;
  }

  /** What can be connected with the token; a refusal is thrown. */
  async function judge(request: ValidateConnectTokenRequest, token: ConnectTokenRow) {
    const app = await appInQuestion(request, token);
    const { appOverrideId } = request;
    const override = await applyOverride(db, token.projectId, app, appOverrideId, {});
    const choice = { app: appMessage(app), appOverrideId, appOverrideFieldNames: Object.keys(override.fields) };
    if (app.auth !== "oauth2") return { ...choice, oauthAppId: "" };
    const oauthAppId = chooseOauthAppId(request.oauthAppId, token, override);
    const oauthApp = await chooseOauthApp(db, token.projectId, app.slug, oauthAppId);
    return { ...choice, oauthAppId: oauthApp.id };
  }

  return {
    async createConnectToken(request) {
      refuseUnbuilt("webhook_uri", request.webhookUri);
      checkRedirectUri("success_redirect_uri", request.successRedirectUri, request.environment);
      checkRedirectUri("error_redirect_uri", request.errorRedirectUri, request.environment);
      const { projectId, externalUserId } = request;
      await getProject(db, projectId);
      const appSlug = await boundApp(request);
      const timeMs = now();
      const lifetimeMs = (request.lifetimeSeconds || maxLifetimeSeconds) * 1000;
      const token = {
        projectId,
        environment: request.environment as EnvironmentNumber,
        externalUserId,
        scopes: requestedScopes("scope", request.scope, ["connect:*"]),
        allowedOrigins: request.allowedOrigins,
        successRedirectUri: request.successRedirectUri,
        errorRedirectUri: request.errorRedirectUri,
        appSlug,
        oauthAppId: request.oauthAppId,
        // Not judged anywhere: an account is made with the scopes that the provider granted, all or a part.
        allowProgressiveScopes: request.allowProgressiveScopes,
        createTime: new Date(timeMs),
        expireTime: new Date(timeMs + lifetimeMs),
      };
      await ensureUser(db, token, token.createTime);
      const text = await insertConnectToken(db, token);
      const link = new URL("/_static/connect.html", gatewayUrl);
      link.search = new URLSearchParams({
        token: text,
        connectLink: "true",
        ...(appSlug && { app: appSlug }),
      }).toString();
      return { token: text, expireTime: token.expireTime, connectLinkUrl: link.href };
    },

    async validateConnectToken(request) {
      const token = await findConnectToken(db, request.connectToken, new Date(now()));
      if (token === undefined || token.claimedBy !== null) {
        return ValidateConnectTokenResponse.fromPartial({ error: invalidConnectToken().message });
      }
      const project = await getProject(db, token.projectId);
      const verdict = await judge(request, token).then(
        (choice) => ({ valid: true, ...choice }),
        (error) => {
          if (error instanceof StatusError) return { error: validationText(error) };
          throw error;
        },
      );
      return ValidateConnectTokenResponse.fromPartial({
        ...verdict,
        projectId: token.projectId,
        environment: token.environment,
        externalUserId: token.externalUserId,
        projectAppName: project.appName,
        projectSupportEmail: project.supportEmail,
        successRedirectUri: token.successRedirectUri,
        errorRedirectUri: token.errorRedirectUri,
        allowedOrigins: [...token.allowedOrigins],
      });
    },

    async getConnection(request) {
      return { connection: connectionMessage(await getConnection(db, request, request.connectionId)) };
    },
  };
}

/** Clients know this text. */
function validationText({ reason, message }: StatusError): string {
  return reason === "APP_NOT_FOUND" ? "App not found. Please check your app id." : message;
}

function checkRedirectUri(field: string, uri: string, environment: Environment): void {
  if (uri === "") return;
  // It is to become a header: the URL parser would drop line ends and take letters that a header cannot have.
  if (!/^[\x21-\x7e]+$/.test(uri)) throw invalidField(field, "has characters that must be percent-encoded");
  const url = URL.parse(uri);
  if (url === null || url.username !== "" || url.password !== "" || url.hash !== "") {
    throw invalidField(field, "is not a URL without user name and fragment");
  }
  const isLocal = ["localhost", "127.0.0.1"].includes(url.hostname) && environment === Environment.DEVELOPMENT;
  if (url.protocol !== "https:" && !(url.protocol === "http:" && isLocal)) {
    throw invalidField(field, "must be https; http is for localhost in the development environment");
  }
}
