// The hosted connect page: a user follows a link with a connect token, sees who connects what to whom, and on their own word
// either goes on to the provider or types keys in. The link works without scripts; in a frame of the product's page a script
// tells how it ended (pages/connect.js). The connect token is the only right: it is passed on to the account service, which
// judges it at each step.
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { StatusError } from "#libs/errors.ts";
import type { CallOptions, Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { AuthType } from "#proto/deputy/account/v1/apps.ts";
import { bindingCookie, newBinding } from "./browser-binding.ts";
import {
  type Described,
  givenValues,
  isFramedForm,
  ownClientOf,
  type Parameters,
  parameterNames,
  sendForm,
} from "./connect-form.ts";
import { httpError } from "./http-errors.ts";
import {
  failureTexts,
  frameScript,
  pageHeaders,
  sendFailure,
  sendOutcome,
  sendPage,
  sendSuccess,
  styleSheet,
} from "./pages.ts";
import { formOf, ownCall, queryOf, single } from "./requests.ts";

type Methods = "validateConnectToken" | "startConnection" | "createAccount";

/** What the page asks of the account service. */
export type ConnectClient = Pick<Client<typeof AccountServiceDefinition>, Methods>;

const path = "/_static/connect.html";
/** Adds the page, what its form is sent to, its script and its style sheet. */
export function addConnectPage(app: FastifyInstance, account: ConnectClient, gatewayUrl: string): void {
  app.get("/_static/connect.css", async (_request, reply) =>
    reply
      .headers({ "cache-control": "public, max-age=3600", "x-content-type-options": "nosniff" })
      .type("text/css; charset=utf-8")
      .send(styleSheet),
  );

  app.get("/_static/connect.js", async (_request, reply) =>
    reply
      .headers({ "cache-control": "public, max-age=3600", "x-content-type-options": "nosniff" })
      .type("text/javascript; charset=utf-8")
      .send(frameScript),
  );

  app.get(path, async (request, reply) => {
    const described = await describe(account, request, queryOf(request), reply);
    return described === undefined ? reply : sendForm(reply, 200, described, new URLSearchParams());
  });

  app.post(path, async (request, reply) => {
    if (!isOwnForm(request, gatewayUrl)) return sendFailure(reply, 403, failureTexts.sessionExpired);
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

/** A form of another site's would be nobody's word. */
function isOwnForm({ headers }: FastifyRequest, gatewayUrl: string): boolean {
  const site = headers["sec-fetch-site"];
  if (site !== undefined) return site === "same-origin";
  const { origin } = headers;
  return origin === undefined || origin === new URL(gatewayUrl).origin;
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
        customOauthClient: parameters.customOauthClient === "true",
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

async function startConnection(
  account: ConnectClient,
  described: Described,
  form: URLSearchParams,
  call: CallOptions,
  reply: FastifyReply,
  gatewayUrl: string,
): Promise<FastifyReply> {
  const { parameters, app } = described;
  const isFramed = isFramedForm(form);
  const browserBinding = newBinding(isFramed);
  const customOauthClient = ownClientOf(described, form);
  const { connectionId, authorizationUrl, expireTime } = await account.startConnection(
    {
      appSlug: app.slug,
      oauthAppId: parameters.oauthAppId,
      accountId: parameters.accountId,
      scopeProfile: parameters.oauthScopeProfile,
      appOverrideId: parameters.appOverrideId,
      fields: givenValues(described, form),
      browserBinding,
      ...(customOauthClient && { customOauthClient }),
    },
    call,
  );
  const state = new URL(authorizationUrl).searchParams.get("state") ?? "";
  const maxAgeSeconds = ((expireTime?.getTime() ?? 0) - Date.now()) / 1000;
  reply.header("set-cookie", bindingCookie(state, browserBinding, maxAgeSeconds, gatewayUrl));
  if (!isFramed) return reply.headers(pageHeaders()).redirect(authorizationUrl, 303);
  // In the window that the frame has opened: the frame hears of the connection before the provider's page comes.
  const script = { role: "started", connection: connectionId, next: authorizationUrl };
  return sendPage(reply, 200, { name: "started", data: { title: `On to ${app.name}`, script } });
}

async function createAccount(
  account: ConnectClient,
  described: Described,
  form: URLSearchParams,
  call: CallOptions,
  reply: FastifyReply,
): Promise<FastifyReply> {
  const { parameters, app, token } = described;
  const {
    account: made,
    connectionId,
    verifier,
  } = await account.createAccount(
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
  const unverified = verifier === "" ? undefined : { connectionId, verifier };
  const next = withVerifier(token.successRedirectUri, unverified);
  if (isFramedForm(form)) {
    const outcome = { type: "success", authProvisionId: made?.id ?? "", ...unverified } as const;
    return sendOutcome(reply, outcome, { origins: token.allowedOrigins, next });
  }
  return next === "" ? sendSuccess(reply) : reply.headers(pageHeaders()).redirect(next, 303);
}

/** The product's page, with what its backend has to verify: as the account service makes it for connections. */
function withVerifier(uri: string, unverified: { connectionId: string; verifier: string } | undefined): string {
  if (uri === "" || unverified === undefined) return uri;
  const url = new URL(uri);
  url.searchParams.set("connection_id", unverified.connectionId);
  url.searchParams.set("verifier", unverified.verifier);
  return url.href;
}

/** What can be put right is asked for again; anything else ends here. */
function sendRefusal(reply: FastifyReply, described: Described, form: URLSearchParams, error: StatusError) {
  const { status } = httpError(error);
  if (error.code === "INVALID_ARGUMENT") return sendForm(reply, status, described, form, error);
  if (error.code === "UNAUTHENTICATED") return sendFailure(reply, status, failureTexts.linkExpired);
  if (error.reason === "KEY_TEST_FAILED") return sendForm(reply, status, described, form, error);
  const detail = error.code === "FAILED_PRECONDITION" ? error.message : "";
  if (isFramedForm(form)) {
    const outcome = {
      type: "error",
      error: detail || failureTexts.connectionFailed(described.token.projectSupportEmail),
    } as const;
    return sendOutcome(reply, outcome, { origins: described.token.allowedOrigins, next: "" });
  }
  return sendFailure(reply, status, failureTexts.connectionFailed(described.token.projectSupportEmail), detail);
}
