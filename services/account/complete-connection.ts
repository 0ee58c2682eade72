// CompleteConnection: what happens when the provider sends the browser back. It may be called any number of times with the
// same state (a double click, a reload, a retry after a crash) and must end in one account and one answer:
//
//   1 the browser must be the one that started: it alone knows the binding, whose digest the connection has
//   2 the connection claims the connect token's one use (connect-tokens.ts)
//   3 the vault exchanges the code, once; it keeps the outcome and tells a repeat the same
//   4 one transaction ends the connection and makes the account
//
// Killed after 2 or 3, nothing is wrong but unfinished: the reload finds the connection PENDING, its own claim, and the
// vault's outcome. Without a reload the vault is left with a credential that no account names and that nobody can use.
// A refusal by the vault is an end (FAILED, the claim released); an outage is not, and is thrown for the caller to retry.
// When the account to be reconnected is revoked in the meantime, the new credential is destroyed as well.
import { timingSafeEqual } from "node:crypto";
import { StatusError } from "#libs/errors.ts";
import { digest } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import type { CompleteConnectionRequest } from "#proto/deputy/account/v1/connect.ts";
import type { CompleteAuthorizationResponse } from "#proto/deputy/vault/v1/credentials.ts";
import { insertAccount, updateReconnectedAccount } from "./accounts.ts";
import { claimConnectToken, getConnectToken, invalidConnectToken, releaseConnectToken } from "./connect-tokens.ts";
import { endConnection, getConnectionByState, lockPendingConnection } from "./connections.ts";
import { afterwards, type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { connectionMessage, credentialFacts } from "./messages.ts";
import type { AccountDatabase, ConnectionRow } from "./schema.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "completeAuthorization" | "destroyCredentials">;
}

export function completeConnectionHandler(
  { db, vault }: Collaborators,
  now: () => number,
): HandlerGroup<"completeConnection"> {
  async function complete(connection: ConnectionRow, request: CompleteConnectionRequest, call: Call) {
    const token = { projectId: connection.projectId, id: connection.connectTokenId };
    if (!(await claimConnectToken(db, token, connection.id))) return fail(connection, invalidConnectToken().message);
    const outcome = await authorize(request, call);
    if (outcome.kind === "refused") {
      const ended = await fail(connection, outcome.message);
      if (ended.state === "FAILED") await releaseConnectToken(db, token, connection.id);
      return ended;
    }
    return succeed(connection, outcome.response, call);
  }

  async function authorize(request: CompleteConnectionRequest, call: Call) {
    const { state, code, error, errorDescription, issuer } = request;
    try {
      const redirect = { state, code, error, errorDescription, issuer };
      return { kind: "authorized", response: await vault.completeAuthorization(redirect, ownRight(call)) } as const;
    } catch (fault) {
      if (!isRefusal(fault)) throw fault;
      return { kind: "refused", message: fault.message || "The provider refused." } as const;
    }
  }

  async function succeed(connection: ConnectionRow, response: CompleteAuthorizationResponse, call: Call) {
    const ended = await db.transaction().execute(async (tx) => {
      if (!(await lockPendingConnection(tx, connection))) return undefined;
      const account = await saveAccount(tx, connection, response);
      return endConnection(tx, connection, account === undefined ? "The account was revoked meanwhile." : undefined);
    });
    if (ended?.state === "FAILED") {
      const { projectId, environment, accountId } = connection;
      await vault.destroyCredentials({ projectId, environment, accountIds: [accountId] }, afterwards(call));
    }
    return ended ?? (await getConnectionByState(db, connection.stateDigest));
  }

  /** Ends the connection as FAILED, or gives the end that it has. */
  async function fail(connection: ConnectionRow, message: string): Promise<ConnectionRow> {
    return (await endConnection(db, connection, message)) ?? (await getConnectionByState(db, connection.stateDigest));
  }

  /** Undefined when the account to be reconnected was revoked. */
  async function saveAccount(tx: AccountDatabase, connection: ConnectionRow, response: CompleteAuthorizationResponse) {
    const { projectId, accountId: id, environment, externalUserId, appSlug, oauthAppId } = connection;
    const { identityName: name, credential } = response;
    const whose = { projectId, id, environment, externalUserId, appSlug, oauthAppId };
    const account = { ...whose, name, authorizedScopes: credential?.scopes ?? [], ...credentialFacts(credential) };
    const time = new Date(now());
    return connection.reconnects
      ? await updateReconnectedAccount(tx, account, time)
      : await insertAccount(tx, account, time);
  }

  return {
    async completeConnection(request, call) {
      const found = await getConnectionByState(db, digest(request.state));
      if (!timingSafeEqual(found.browserBindingDigest, digest(request.browserBinding))) throw otherBrowser();
      const connection = found.state === "PENDING" ? await complete(found, request, call) : found;
      const token = await getConnectToken(db, connection.projectId, connection.connectTokenId);
      const redirectUri = connection.state === "SUCCEEDED" ? token.successRedirectUri : token.errorRedirectUri;
      return { connection: connectionMessage(connection), redirectUri };
    },
  };
}

/** Whether the vault has said no for good. A vault without its key is an outage. */
function isRefusal(error: unknown): error is StatusError {
  if (!(error instanceof StatusError) || error.reason === "SEALED") return false;
  return ["FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"].includes(error.code);
}

function otherBrowser(): StatusError {
  const message = "The connection was started in another browser. Please start again.";
  return new StatusError("PERMISSION_DENIED", "BROWSER_MISMATCH", message);
}
