// External users over REST.
import type { FastifyInstance } from "fastify";
import type { Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { pageJson, userJson } from "./json-shapes.ts";
import { callerCall, pageOf, queryOf, scopeOf, single } from "./requests.ts";

/** What is asked about users. */
export type UserClient = Pick<Client<typeof AccountServiceDefinition>, "listUsers">;

/** Adds the routes. */
export function addUserRoutes(app: FastifyInstance, account: UserClient): void {
  for (const prefix of ["/v1/connect/:project_id", "/v1/connect"]) {
    app.get(`${prefix}/users`, async (request) => {
      const query = queryOf(request);
      const list = { ...scopeOf(request), query: single(query, "q"), ...pageOf(query) };
      const page = await account.listUsers(list, callerCall(request));
      return pageJson(page.users.map(userJson), page);
    });
  }
}
