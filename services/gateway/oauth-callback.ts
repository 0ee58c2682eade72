// Where the provider sends the browser back to: hands what came with it to the account service and shows how it ended. The
// account service gives a repeat the same answer, so a reload or a double click shows the same result.
import type { FastifyInstance } from "fastify";
import { StatusError } from "#libs/errors.ts";
import type { Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { type CompleteConnectionResponse, ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { findBinding, isFramedBinding } from "./browser-binding.ts";
import { httpError } from "./http-errors.ts";
import { failureTexts, type Outcome, pageHeaders, sendFailure, sendOutcome, sendSuccess } from "./pages.ts";
import { ownCall, queryOf, single } from "./requests.ts";

/** What the callback asks of the account service. */
export type CallbackClient = Pick<Client<typeof AccountServiceDefinition>, "completeConnection">;

// The provider's token endpoint is asked meanwhile, and the code works once: no hurry.
const completeTimeoutMs = 45_000;

/** Adds the route. */
export function addOauthCallback(app: FastifyInstance, account: CallbackClient, gatewayUrl: string): void {
  app.get("/oauth/callback", async (request, reply) => {
    try {
      const query = queryOf(request);
      const state = single(query, "state");
      const browserBinding = state === "" ? undefined : findBinding(request, state, gatewayUrl);
      if (browserBinding === undefined) return sendFailure(reply, 400, failureTexts.sessionExpired);
      const completed = await account.completeConnection(
        {
          state,
          browserBinding,
          code: single(query, "code"),
          error: single(query, "error"),
          errorDescription: single(query, "error_description"),
          issuer: single(query, "iss"),
          parameters: otherParameters(query),
        },
        ownCall(request, completeTimeoutMs),
      );
      if (isFramedBinding(browserBinding)) {
        // The frame is told; the page's own origins are not needed here, for no frame shows this page.
        return sendOutcome(reply, outcomeOf(completed), { origins: [], next: completed.redirectUri });
      }
      const { connection, redirectUri } = completed;
      if (redirectUri !== "") return reply.headers(pageHeaders()).redirect(redirectUri, 303);
      if (connection !== undefined && connection.state !== ConnectionState.FAILED) return sendSuccess(reply);
      return sendFailure(reply, 400, failureTexts.connectionFailed(), connection?.error);
    } catch (error) {
      if (!(error instanceof StatusError)) throw error;
      const { status } = httpError(error);
      // Gone, or another browser's: either way this browser has nothing to go on with.
      const isOver = error.code === "NOT_FOUND" || error.reason === "BROWSER_MISMATCH";
      if (isOver) return sendFailure(reply, status, failureTexts.sessionExpired);
      const detail = status >= 500 ? "Reload this page to try again." : "";
      return sendFailure(reply, status, failureTexts.connectionFailed(), detail);
    }
  });
}

/** How it ended, for the frame that waits. */
function outcomeOf({ connection, verifier }: CompleteConnectionResponse): Outcome {
  if (connection === undefined || connection.state === ConnectionState.FAILED) {
    return { type: "error", error: connection?.error || failureTexts.connectionFailed() };
  }
  const { id: connectionId, accountId: authProvisionId } = connection;
  return { type: "success", authProvisionId, ...(verifier !== "" && { connectionId, verifier }) };
}

const known = ["state", "code", "error", "error_description", "iss"];
const maxOthers = 20;

/** What else came with the redirect, for apps that take values from it: single ones of a sound size. */
function otherParameters(query: URLSearchParams): Record<string, string> {
  const names = [...new Set(query.keys())].filter((name) => !known.includes(name) && name.length <= 100);
  const single = names.flatMap((name) => {
    const [value = "", ...more] = query.getAll(name);
    return more.length === 0 && value.length <= 2_000 ? [[name, value] as const] : [];
  });
  return Object.fromEntries(single.slice(0, maxOthers));
}
