// The hosted connect page: a user follows a link with a connect token, sees who connects what, and either goes on to the
// provider or types keys in. Works without scripts. The connect token is the only right: it is passed on to the account
// service, which judges it at each step.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { StatusError } from "#libs/errors.ts";
import { randomText } from "#libs/ids.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { type App, AuthType } from "#proto/deputy/account/v1/apps.ts";
import type { ValidateConnectTokenResponse } from "#proto/deputy/account/v1/connect.ts";
import { bindingCookie } from "./browser-binding.ts";
import { httpError } from "./http-errors.ts";
import { failureTexts, pageHeaders, sendFailure, sendPage, sendSuccess, styleSheet } from "./pages.ts";
import { formOf, ownCall, queryOf, single } from "./requests.ts";

type Methods = "validateConnectToken" | "startConnection" | "createAccount";

/** What the page asks of the account service. */
export type ConnectClient = Pick<Client<typeof AccountServiceDefinition>, Methods>;

const path = "/_static/connect.html";
// The names that existing clients put into the page's address; the form carries them on.
const parameterNames = ["token", "app", "oauthAppId", "appOverrideId", "accountId", "oauthScopeProfile"] as const;
type Parameters = Readonly<Record<(typeof parameterNames)[number], string>>;

interface Described {
  readonly parameters: Parameters;
  readonly token: ValidateConnectTokenResponse;
  readonly app: App;
}

/** Adds the page, its form and its style sheet. */
export function addConnectPage(app: FastifyInstance, account: ConnectClient, gatewayUrl: string): void {
  app.get("/_static/connect.css", async (_request, reply) =>
    reply
      .headers({ "cache-control": "public, max-age=3600", "x-content-type-options": "nosniff" })
      .type("text/css; charset=utf-8")
      .send(styleSheet),
  );

  app.get(path, async (request, reply) => {
    const described = await describe(account, request, queryOf(request), reply);
    return described === undefined ? reply : sendForm(reply, 200, described, new URLSearchParams());
  });

  app.post(path, async (request, reply) => {
    const site = request.headers["sec-fetch-site"];
    if (site !== undefined && site !== "same-origin") return sendFailure(reply, 403, failureTexts.sessionExpired);
    const form = formOf(request);
    const described = await describe(account, request, form, reply);
    if (described === undefined) return reply;
    const call = { ...ownCall(request), token: described.parameters.token };
    try {
      if (described.app.authType !== AuthType.OAUTH) return await createAccount(account, described, form, call, reply);
      return await startConnection(account, described, form, call, reply, gatewayUrl);
    } catch (error) {
      if (!(error instanceof StatusError)) throw error;
      return sendRefusal(reply, described, form, error);
    }
  });
}

/** What the parameters stand for; undefined when a page has been sent that says why they stand for nothing. */
async function describe(
  account: ConnectClient,
  request: FastifyRequest,
  given: URLSearchParams,
  reply: FastifyReply,
): Promise<Described | undefined> {
  const entries = parameterNames.map((name) => [name, single(given, name)] as const);
  const parameters = Object.fromEntries(entries) as Parameters;
  if (parameters.token === "") {
    sendFailure(reply, 400, failureTexts.linkExpired);
    return undefined;
  }
  try {
    const token = await account.validateConnectToken(
      {
        connectToken: parameters.token,
        appSlug: parameters.app,
        accountId: parameters.accountId,
        oauthAppId: parameters.oauthAppId,
        appOverrideId: parameters.appOverrideId,
      },
      ownCall(request),
    );
    if (token.valid && token.app !== undefined) return { parameters, token, app: token.app };
    // A token that is good for nothing has no project; with a good one it is the app or the account that cannot be had.
    const isExpired = token.projectId === "";
    sendFailure(reply, 400, isExpired ? failureTexts.linkExpired : token.error || failureTexts.connectionFailed());
  } catch (error) {
    if (!(error instanceof StatusError)) throw error;
    const isForm = error.code === "INVALID_ARGUMENT";
    sendFailure(reply, httpError(error).status, isForm ? failureTexts.linkExpired : failureTexts.connectionFailed());
  }
  return undefined;
}

function sendForm(
  reply: FastifyReply,
  status: number,
  { parameters, token, app }: Described,
  given: URLSearchParams,
  error?: StatusError,
): FastifyReply {
  const faultOf = (name: string) =>
    error?.violations.find(({ field }) => field === `fields.${name}`)?.description ?? "";
  const fields = askedFields(app, token).map(({ name, label, description, defaultValue, secret, optional }) => ({
    name: `field.${name}`,
    label,
    description,
    secret,
    required: !optional && defaultValue === "",
    // A secret is typed in again: what was sent is not sent back.
    value: secret ? "" : (given.get(`field.${name}`) ?? defaultValue),
    error: faultOf(name),
  }));
  const data = {
    projectName: token.projectAppName || "This application",
    supportEmail: token.projectSupportEmail,
    appName: app.name,
    imageUrl: app.imageUrl,
    externalUserId: token.externalUserId,
    hasProvider: app.authType === AuthType.OAUTH,
    hidden: parameterNames.map((name) => [name, parameters[name]] as const).filter(([, value]) => value !== ""),
    fields,
    error: error === undefined || fields.some((field) => field.error !== "") ? "" : error.message,
  };
  return sendPage(reply, status, { name: "connect", data }, token.allowedOrigins);
}

// With a provider, what is secret is the provider's to ask for; what an override fills is not asked at all.
function askedFields({ customFields, authType }: App, { appOverrideFieldNames }: ValidateConnectTokenResponse) {
  const asked = customFields.filter(({ name }) => !appOverrideFieldNames.includes(name));
  return authType === AuthType.OAUTH ? asked.filter(({ secret }) => !secret) : asked;
}

function givenValues(described: Described, form: URLSearchParams): Record<string, string> {
  const values = askedFields(described.app, described.token).map(({ name }) => [name, single(form, `field.${name}`)]);
  return Object.fromEntries(values.filter(([, value]) => value !== ""));
}

async function startConnection(
  account: ConnectClient,
  described: Described,
  form: URLSearchParams,
  call: CallOptions,
  reply: FastifyReply,
  gatewayUrl: string,
): Promise<FastifyReply> {
  const { parameters, app } = described;
  const browserBinding = randomText();
  const { authorizationUrl, expireTime } = await account.startConnection(
    {
      appSlug: app.slug,
      oauthAppId: parameters.oauthAppId,
      accountId: parameters.accountId,
      scopeProfile: parameters.oauthScopeProfile,
      appOverrideId: parameters.appOverrideId,
      fields: givenValues(described, form),
      browserBinding,
    },
    call,
  );
  const state = new URL(authorizationUrl).searchParams.get("state") ?? "";
  const maxAgeSeconds = ((expireTime?.getTime() ?? 0) - Date.now()) / 1000;
  return reply
    .headers(pageHeaders())
    .header("set-cookie", bindingCookie(state, browserBinding, maxAgeSeconds, gatewayUrl))
    .redirect(authorizationUrl, 303);
}

async function createAccount(
  account: ConnectClient,
  described: Described,
  form: URLSearchParams,
  call: CallOptions,
  reply: FastifyReply,
): Promise<FastifyReply> {
  const { parameters, app, token } = described;
  await account.createAccount(
    {
      projectId: token.projectId,
      environment: token.environment,
      externalUserId: token.externalUserId,
      appSlug: app.slug,
      credential: { $case: "fields", value: { values: givenValues(described, form) } },
      accountId: parameters.accountId,
      appOverrideId: parameters.appOverrideId,
    },
    call,
  );
  const next = token.successRedirectUri;
  return next === "" ? sendSuccess(reply) : reply.headers(pageHeaders()).redirect(next, 303);
}

/** What can be put right is asked for again; anything else ends here. */
function sendRefusal(reply: FastifyReply, described: Described, form: URLSearchParams, error: StatusError) {
  const { status } = httpError(error);
  if (error.code === "INVALID_ARGUMENT") return sendForm(reply, status, described, form, error);
  if (error.code === "UNAUTHENTICATED") return sendFailure(reply, status, failureTexts.linkExpired);
  const detail = error.code === "FAILED_PRECONDITION" ? error.message : "";
  return sendFailure(reply, status, failureTexts.connectionFailed(described.token.projectSupportEmail), detail);
}
