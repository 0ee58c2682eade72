// Connections over REST: how far one is, for whoever waits for its end, and the word of the product's backend that completes
// one whose connect token asks for it. Existing clients know neither.
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { type Connection, ConnectionState } from "#proto/deputy/account/v1/connect.ts";
import { isoOrNull } from "./json-shapes.ts";
import { bodyOf, callerCall, pathParameter, scopeOf } from "./requests.ts";

/** What is asked about connections. */
export type ConnectionClient = Pick<Client<typeof AccountServiceDefinition>, "getConnection" | "verifyConnection">;

const stateNames: Readonly<Record<ConnectionState, string>> = {
  [ConnectionState.UNSPECIFIED]: "unknown",
  [ConnectionState.PENDING]: "pending",
  [ConnectionState.AWAITING_VERIFICATION]: "awaiting_verification",
  [ConnectionState.SUCCEEDED]: "succeeded",
  [ConnectionState.FAILED]: "failed",
};

const verifyBody = z.object({
  external_user_id: z.string().min(1).max(250),
  verifier: z.string().min(1).max(200),
});

/** Adds the routes. */
export function addConnectionRoutes(app: FastifyInstance, account: ConnectionClient): void {
  for (const prefix of ["/v1/connect/:project_id", "/v1/connect"]) {
    app.get(`${prefix}/connections/:connection_id`, async (request) => {
      const named = { ...scopeOf(request), connectionId: pathParameter(request, "connection_id") };
      return connectionJson((await account.getConnection(named, callerCall(request))).connection);
    });

    app.post(`${prefix}/connections/:connection_id/verify`, async (request) => {
      const { external_user_id: externalUserId, verifier } = bodyOf(verifyBody, request);
      const named = { ...scopeOf(request), connectionId: pathParameter(request, "connection_id") };
      const verified = await account.verifyConnection({ ...named, externalUserId, verifier }, callerCall(request));
      return connectionJson(verified.connection);
    });
  }
}

function connectionJson(connection: Connection | undefined) {
  if (connection === undefined) throw new Error("the account service answered without a connection");
  const { id, state, appSlug, externalUserId, accountId, error, createTime, expireTime } = connection;
  return {
    id,
    state: stateNames[state],
    app: appSlug,
    external_id: externalUserId,
    account_id: accountId || null,
    error: error || null,
    created_at: isoOrNull(createTime),
    expires_at: isoOrNull(expireTime),
  };
}
