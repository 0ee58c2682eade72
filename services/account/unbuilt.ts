// What the contract declares and this service does not do yet: refused, never ignored.
import { StatusError, unimplemented } from "#libs/errors.ts";
import type { Handlers } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";

const refuse = (method: string) => () => {
  throw unimplemented(method);
};

/** Handlers of methods that are not built. */
export const unbuiltHandlers = {
  updateAccount: refuse("UpdateAccount"),
  listUsers: refuse("ListUsers"),
  deleteUser: refuse("DeleteUser"),
  listProjects: refuse("ListProjects"),
  updateProject: refuse("UpdateProject"),
  deleteProject: refuse("DeleteProject"),
  listApiClients: refuse("ListApiClients"),
  rotateApiClientSecret: refuse("RotateApiClientSecret"),
  deleteApiClient: refuse("DeleteApiClient"),
  watchAccounts: refuse("WatchAccounts"),
  listAuditEntries: refuse("ListAuditEntries"),
} satisfies Partial<Handlers<typeof AccountServiceDefinition>>;

/** Refuses a request that uses a field which is not built. */
export function refuseUnbuilt(field: string, given: unknown): void {
  if (!given) return;
  const message = `${field} is part of the contract but not built yet.`;
  throw new StatusError("UNIMPLEMENTED", "NOT_IMPLEMENTED", message, { metadata: { field } });
}
