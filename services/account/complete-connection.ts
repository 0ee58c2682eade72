// CompleteConnection: what happens when the provider sends the browser back. It may be called any number of times with the
// same state (a double click, a reload, a retry after a crash) and must end in one account and one answer:
//
//   1 the browser must be the one that started: it alone knows the binding, whose digest the connection has
//   2 the connection claims the connect token's one use (connect-tokens.ts)
//   3 the vault exchanges the code, once; it keeps the outcome and tells a repeat the same
//   4 one transaction ends the connection and makes the account, or leaves both to VerifyConnection (verification.ts)
//
// Killed after 2 or 3, nothing is wrong but unfinished: the reload finds the connection PENDING, its own claim, and the
// vault's outcome. Without a reload the sweep ends it, and destroys the credential that no account names
// (account-reservations.ts). A refusal by the vault is an end (FAILED, the claim released); an outage is not, and is thrown
// for the caller to retry. When the account to be reconnected is revoked in the meantime, the new credential is destroyed too.
import { timingSafeEqual } from "node:crypto";
import { StatusError } from "#libs/errors.ts";
import { digest } from "#libs/ids.ts";
import type { Call } from "#libs/rpc.ts";
import type { CompleteConnectionRequest } from "#proto/deputy/account/v1/connect.ts";
import type { CompleteAuthorizationResponse } from "#proto/deputy/vault/v1/credentials.ts";
import { doomReservation, extendReservation, takeReservation } from "./account-reservations.ts";
import { claimConnectToken, getConnectToken, invalidConnectToken, releaseConnectToken } from "./connect-tokens.ts";
import { actingUser, auditConnection, connectAccount, tellFailure } from "./connection-outcomes.ts";
import { awaitVerification, endConnection, getConnectionByState, lockConnection, waitingFacts } from "./connections.ts";
import { afterwards, type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { connectionMessage, credentialFacts } from "./messages.ts";
import type { AccountDatabase, ConnectionRow, ConnectTokenRow } from "./schema.ts";
import { isVerifierOf, verifiableUntil, verificationUri, verifierOf } from "./verification.ts";

const action = "CompleteConnection";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "completeAuthorization" | "destroyCredentials">;
}

interface Completion {
  readonly connection: ConnectionRow;
  readonly token: ConnectTokenRow;
  readonly request: CompleteConnectionRequest;
  readonly call: Call;
}

export function completeConnectionHandler(
  { db, vault }: Collaborators,
  now: () => number,
): HandlerGroup<"completeConnection"> {
  async function complete(completion: Completion): Promise<ConnectionRow> {
    const { connection, token, request, call } = completion;
    if (!(await claimConnectToken(db, token, connection.id))) return fail(completion, invalidConnectToken().message);
    const outcome = await authorize(request, call);
    if (outcome.kind === "authorized") return succeed(completion, outcome.response);
    const ended = await fail(completion, outcome.message);
    if (ended.state === "FAILED") await releaseConnectToken(db, token, connection.id);
    return ended;
  }

  async function authorize(request: CompleteConnectionRequest, call: Call) {
    const { state, code, error, errorDescription, issuer, parameters } = request;
    try {
      const redirect = { state, code, error, errorDescription, issuer, parameters };
      return { kind: "authorized", response: await vault.completeAuthorization(redirect, ownRight(call)) } as const;
    } catch (fault) {
      if (!isRefusal(fault)) throw fault;
      return { kind: "refused", message: fault.message || "The provider refused." } as const;
    }
  }

  async function succeed(completion: Completion, response: CompleteAuthorizationResponse): Promise<ConnectionRow> {
    const { connection, call } = completion;
    const ended = await db.transaction().execute(async (tx) => {
      if (!(await lockConnection(tx, connection, "PENDING"))) return undefined;
      return completion.token.requireVerification
        ? await wait(tx, completion, response)
        : await connect(tx, completion, response);
    });
    if (ended?.state === "FAILED") {
      const { projectId, environment, accountId } = connection;
      await vault.destroyCredentials({ projectId, environment, accountIds: [accountId] }, afterwards(call));
    }
    return ended ?? (await getConnectionByState(db, connection.stateDigest));
  }

  /** FAILED when the account to be reconnected was revoked. */
  async function connect(tx: AccountDatabase, completion: Completion, response: CompleteAuthorizationResponse) {
    const { connection, token, call } = completion;
    const { projectId, accountId: id, environment, externalUserId, appSlug, oauthAppId, reconnects } = connection;
    const { identityName: name, credential } = response;
    const whose = { projectId, id, environment, externalUserId, appSlug, oauthAppId };
    const facts = { authorizedScopes: credential?.scopes ?? [], ...credentialFacts(credential) };
    const account = { ...whose, name, ...facts, ownerMemberId: token.actorMemberId };
    const time = new Date(now());
    if (!reconnects) await takeReservation(tx, connection);
    const connected = { account, reconnects, connectionId: connection.id, webhookUri: token.webhookUri };
    const row = await connectAccount(tx, connected, { action, call: actingUser(connection, call), time });
    if (row !== undefined) return endConnection(tx, connection);
    return endAsFailed(tx, completion, "The account was revoked meanwhile.");
  }

  /** The account is left to VerifyConnection. */
  async function wait(tx: AccountDatabase, completion: Completion, response: CompleteAuthorizationResponse) {
    const { connection, request, call } = completion;
    const time = new Date(now());
    const expireTime = verifiableUntil(time);
    const waiting = await awaitVerification(tx, connection, {
      verifierDigest: digest(verifierOf(request)),
      accountName: response.identityName,
      authorizedScopes: response.credential?.scopes ?? [],
      ...waitingFacts(credentialFacts(response.credential)),
      expireTime,
    });
    await extendReservation(tx, connection, expireTime);
    await auditConnection(tx, waiting, { action, call: actingUser(connection, call), time });
    return waiting;
  }

  /** Ends the connection as FAILED, or gives the end that it has. */
  async function fail(completion: Completion, message: string): Promise<ConnectionRow> {
    const ended = await db.transaction().execute((tx) => endAsFailed(tx, completion, message));
    return ended ?? (await getConnectionByState(db, completion.connection.stateDigest));
  }

  async function endAsFailed(tx: AccountDatabase, { connection, token, call }: Completion, message: string) {
    const ended = await endConnection(tx, connection, message);
    if (ended === undefined) return undefined;
    const time = new Date(now());
    await tellFailure(tx, ended, token.webhookUri, time);
    await auditConnection(tx, ended, { action, call: actingUser(connection, call), time });
    if (!ended.reconnects) await doomReservation(tx, ended, time);
    return ended;
  }

  return {
    async completeConnection(request, call) {
      const found = await getConnectionByState(db, digest(request.state));
      if (!timingSafeEqual(found.browserBindingDigest, digest(request.browserBinding))) throw otherBrowser();
      const token = await getConnectToken(db, found.projectId, found.connectTokenId);
      const connection =
        found.state === "PENDING" ? await complete({ connection: found, token, request, call }) : found;
      const { allowedOrigins } = token;
      return {
        connection: connectionMessage(connection),
        ...wayBack(connection, token, request),
        allowedOrigins: [...allowedOrigins],
      };
    },
  };
}

/** Where the browser goes next, with the verifier when it is to bring one. */
function wayBack(connection: ConnectionRow, token: ConnectTokenRow, request: CompleteConnectionRequest) {
  if (connection.state === "FAILED") return { redirectUri: token.errorRedirectUri, verifier: "" };
  const verifier = verifierOf(request);
  if (!isVerifierOf(connection, verifier)) return { redirectUri: token.successRedirectUri, verifier: "" };
  return { redirectUri: verificationUri(token.successRedirectUri, connection.id, verifier), verifier };
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
