// What the files of handlers share: the type of a group of methods, and the narrowed client of the vault.
import type { Call, CallOptions, Client, Handlers, MethodName } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { AccountOperation, Right } from "./member-rights.ts";

/** Some of the service's handlers. */
export type HandlerGroup<Methods extends MethodName<typeof AccountServiceDefinition>> = Pick<
  Handlers<typeof AccountServiceDefinition>,
  Methods
>;

/** The part of the vault that this service calls. */
export type Vault = Pick<
  Client<typeof CredentialVaultDefinition>,
  | "storeCredential"
  | "getCredential"
  | "startAuthorization"
  | "completeAuthorization"
  | "destroyCredentials"
  | "putOauthClient"
  | "eraseUser"
  | "createWebhookKey"
  | "destroyWebhookKey"
  | "destroyOauthClient"
  | "putApp"
  | "destroyApp"
>;

/** How to call the vault: by this service's own right, so the caller's token stays here. */
export function ownRight({ deadlineMs, signal, requestId }: Call): CallOptions {
  return { deadlineMs, signal, requestId };
}

/** For what has to be done although the caller may have left. */
export function afterwards({ requestId }: Call): CallOptions {
  return { deadlineMs: Date.now() + 10_000, requestId };
}

/** What a call is about to do with an account, on behalf of the member for whom its caller acts, if any. */
export function toDo(operation: AccountOperation, { caller }: Pick<Call, "caller">): Right {
  return { actor: caller.token?.actor, operation };
}
