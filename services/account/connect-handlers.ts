// Connect tokens, and connections as their starter sees them. How a connection starts and ends is in start-connection.ts
// and complete-connection.ts.
import type { CatalogApp } from "#libs/catalog.ts";
import { judgeUrl } from "#libs/destination.ts";
import { invalidField, StatusError } from "#libs/errors.ts";
import type { CreateConnectTokenRequest, ValidateConnectTokenRequest } from "#proto/deputy/account/v1/connect.ts";
import { ValidateConnectTokenResponse } from "#proto/deputy/account/v1/connect.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { getAccount } from "./accounts.ts";
import { chooseApp, chooseOauthAppId, getNamedApp } from "./app-choice.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import {
  actorOfToken,
  findConnectToken,
  insertConnectToken,
  invalidConnectToken,
  type NewConnectToken,
} from "./connect-tokens.ts";
import { getConnection } from "./connections.ts";
import { ensureUser } from "./external-users.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { appMessage, connectionMessage } from "./messages.ts";
import { chooseOauthApp, getOauthApp } from "./oauth-apps.ts";
import { applyOverride, chooseOverride } from "./override-choice.ts";
import type { CatalogOf } from "./own-apps.ts";
import { getProject, holdProject } from "./projects.ts";
import type { AccountDatabase, ConnectTokenRow, EnvironmentNumber } from "./schema.ts";
import { connectTokenScopes } from "./scopes.ts";

const maxLifetimeSeconds = 14_400;

export function connectHandlers(
  {
    db,
    catalogOf,
    gatewayUrl,
    developmentUsers,
  }: { db: AccountDatabase; catalogOf: CatalogOf; gatewayUrl: string; developmentUsers: number },
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
    const { appSlug } = await getAccount(db, token, request.accountId, {
      actor: actorOfToken(token),
      operation: "manage",
    });
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
    if (app.auth !== "oauth2" || request.customOauthClient) return { ...choice, oauthAppId: "" };
    const oauthAppId = chooseOauthAppId(request.oauthAppId, token, override);
    const oauthApp = await chooseOauthApp(db, token.projectId, app.slug, oauthAppId);
    return { ...choice, oauthAppId: oauthApp.id };
  }

  return {
    async createConnectToken(request, call) {
      checkWebhookUri(request.webhookUri, request.environment);
      checkVerification(request);
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
        scopes: connectTokenScopes(request.scope, call.caller.token?.scopes),
        allowedOrigins: request.allowedOrigins,
        successRedirectUri: request.successRedirectUri,
        errorRedirectUri: request.errorRedirectUri,
        appSlug,
        oauthAppId: request.oauthAppId,
        webhookUri: request.webhookUri,
        allowProgressiveScopes: request.allowProgressiveScopes,
        requireVerification: request.requireVerification,
        actorMemberId: call.caller.token?.actor?.memberId ?? "",
        actorRole: call.caller.token?.actor?.role ?? "",
        createTime: new Date(timeMs),
        expireTime: new Date(timeMs + lifetimeMs),
      };
      const text = await db.transaction().execute(async (tx) => {
        await ensureUser(tx, token, token.createTime, developmentUsers);
        await holdProject(tx, projectId);
        const made = await insertConnectToken(tx, token);
        await insertAuditEntries(tx, call, token.createTime, auditedToken(made.id, token));
        return made.text;
      });
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
        // A used one still speaks for its user, from pages of these origins.
        const allowedOrigins = [...(token?.allowedOrigins ?? [])];
        return ValidateConnectTokenResponse.fromPartial({ error: invalidConnectToken().message, allowedOrigins });
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
        requiresVerification: token.requireVerification,
      });
    },

    async getConnection(request, call) {
      const actor = call.caller.token?.actor;
      return { connection: connectionMessage(await getConnection(db, request, request.connectionId, actor)) };
    },
  };
}

/** Clients know this text. */
function validationText({ reason, message }: StatusError): string {
  return reason === "APP_NOT_FOUND" ? "App not found. Please check your app id." : message;
}

/** What the audit tells of a token, which is not its text. */
function auditedToken(resourceId: string, token: NewConnectToken) {
  const { projectId, environment, externalUserId, scopes, appSlug, oauthAppId, expireTime, requireVerification } =
    token;
  const after = { environment, externalUserId, scopes, appSlug, oauthAppId, expireTime, requireVerification };
  return { projectId, action: "CreateConnectToken", resourceId, after };
}

/** The verifier has to come back to the product in some way. */
function checkVerification(request: CreateConnectTokenRequest): void {
  const { requireVerification, successRedirectUri, allowedOrigins } = request;
  if (!requireVerification || successRedirectUri !== "" || allowedOrigins.length > 0) return;
  throw invalidField("require_verification", "needs success_redirect_uri or allowed_origins");
}

/** Where outcomes are posted must be a place that this service may reach; in development also this machine. */
function checkWebhookUri(uri: string, environment: Environment): void {
  if (uri === "" || isLocal(URL.parse(uri), environment)) return;
  const verdict = judgeUrl(uri);
  if (verdict.kind === "deny") throw invalidField("webhook_uri", `cannot be called: ${verdict.message}`);
}

function isLocal(url: URL | null, environment: Environment): boolean {
  if (url === null || environment !== Environment.DEVELOPMENT) return false;
  return ["localhost", "127.0.0.1"].includes(url.hostname) && ["http:", "https:"].includes(url.protocol);
}

function checkRedirectUri(field: string, uri: string, environment: Environment): void {
  if (uri === "") return;
  // It is to become a header: the URL parser would drop line ends and take letters that a header cannot have.
  if (!/^[\x21-\x7e]+$/.test(uri)) throw invalidField(field, "has characters that must be percent-encoded");
  const url = URL.parse(uri);
  if (url === null || url.username !== "" || url.password !== "" || url.hash !== "") {
    throw invalidField(field, "is not a URL without user name and fragment");
  }
  if (url.protocol !== "https:" && !isLocal(url, environment)) {
    throw invalidField(field, "must be https; http is for localhost in the development environment");
  }
}
