// VerifyConnection: the product's backend says that the user who is signed in there is the one whose browser has agreed, and
// the account is made. Why this is needed: verification.ts. The credential has been in the vault since the user agreed; without
// this call it is destroyed, and so it is when the OAuth app or the app was deleted while the connection waited. A repeat gets
// the same answer.
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import { doomReservation, takeReservation } from "./account-reservations.ts";
import { getConnectToken } from "./connect-tokens.ts";
import { auditConnection, connectAccount, tellFailures } from "./connection-outcomes.ts";
import { endConnection, getConnection, lockConnection } from "./connections.ts";
import { ensureUser } from "./external-users.ts";
import type { HandlerGroup, Vault } from "./handler-group.ts";
import { connectionMessage } from "./messages.ts";
import { holdOauthClient } from "./oauth-apps.ts";
import type { CatalogOf } from "./own-apps.ts";
import type { AccountDatabase, AccountReservationRow, ConnectionRow, ConnectTokenRow } from "./schema.ts";
import { destroyRemains } from "./sweep-connecting.ts";
import { isVerifierOf } from "./verification.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "destroyCredentials">;
  readonly catalogOf: CatalogOf;
  readonly developmentUsers: number;
}

/** How a connection that waited has ended. */
interface End {
  readonly connection: ConnectionRow | undefined;
  /** Given up: the vault holds a credential that no account will have. */
  readonly doomed?: AccountReservationRow | undefined;
}

const action = "VerifyConnection";

export function verifyConnectionHandler(
  { db, vault, catalogOf, developmentUsers }: Collaborators,
  now: () => number,
): HandlerGroup<"verifyConnection"> {
  /** Makes the account of a connection that waits; undefined when it waits no more. */
  async function verify(connection: ConnectionRow, call: Call): Promise<ConnectionRow | undefined> {
    const { projectId, oauthAppId, appSlug } = connection;
    const token = await getConnectToken(db, projectId, connection.connectTokenId);
    const hasApp = (await catalogOf(projectId)).has(appSlug);
    const time = new Date(now());
    const end = await db.transaction().execute(async (tx): Promise<End> => {
      if (!(await lockConnection(tx, connection, "AWAITING_VERIFICATION"))) return { connection: undefined };
      const hasClient = oauthAppId === "" || (await holdOauthClient(tx, projectId, oauthAppId));
      const gone = hasApp ? "The OAuth app was deleted meanwhile." : "The app was deleted meanwhile.";
      if (!hasApp || !hasClient) return refuse(tx, connection, gone, { token, call, time });
      await takeReservation(tx, connection);
      await ensureUser(tx, connection, time, developmentUsers);
      const account = { ...accountOf(connection), ownerMemberId: token.actorMemberId };
      const connected = { account, reconnects: false, connectionId: connection.id, webhookUri: token.webhookUri };
      await connectAccount(tx, connected, { action, call, time });
      return { connection: await endConnection(tx, connection) };
    });
    // What cannot be destroyed now is destroyed by the sweep.
    if (end.doomed) await destroyRemains({ db, vault }, end.doomed, time).catch(() => undefined);
    return end.connection;
  }

  async function refuse(
    tx: AccountDatabase,
    connection: ConnectionRow,
    error: string,
    { token, call, time }: { readonly token: ConnectTokenRow; readonly call: Call; readonly time: Date },
  ): Promise<End> {
    const ended = await endConnection(tx, connection, error);
    if (ended === undefined) return { connection: undefined };
    await tellFailures(tx, [{ connection: ended, webhookUri: token.webhookUri }], time);
    await auditConnection(tx, ended, { action, call, time });
    return { connection: ended, doomed: await doomReservation(tx, ended, time) };
  }

  return {
    async verifyConnection(request, call) {
      const found = await getConnection(db, request, request.connectionId, call.caller.token?.actor);
      if (!isVerifierOf(found, request.verifier)) throw wrongVerifier();
      if (found.state === "AWAITING_VERIFICATION" && found.expireTime.getTime() <= now()) throw tooLate();
      const verified = found.state === "AWAITING_VERIFICATION" ? await verify(found, call) : undefined;
      const connection = verified ?? (await getConnection(db, request, request.connectionId));
      if (connection.state !== "SUCCEEDED") throw ended(connection.error);
      return { connection: connectionMessage(connection) };
    },
  };
}

/** The account as it waited with its connection. */
function accountOf(connection: ConnectionRow) {
  const { projectId, accountId: id, environment, externalUserId, appSlug, oauthAppId } = connection;
  const { accountName: name, authorizedScopes, credentialGeneration, credentialExpireTime: expireTime } = connection;
  const { lastRefreshTime, nextRefreshTime, grantExpireTime, grantNoticeTime } = connection;
  return {
    ...{
      projectId,
      id,
      environment,
      externalUserId,
      appSlug,
      oauthAppId,
      name,
      authorizedScopes,
      credentialGeneration,
    },
    ...{ expireTime, lastRefreshTime, nextRefreshTime, grantExpireTime, grantNoticeTime },
  };
}

/** Also of a connection that has none to verify: who does not know one learns nothing of it. */
function wrongVerifier(): StatusError {
  const message = "The verifier is not that of the connection: take the one that the user's browser brought.";
  return new StatusError("PERMISSION_DENIED", "VERIFIER_MISMATCH", message);
}

function tooLate(): StatusError {
  return ended("The connection was not verified in time.");
}

function ended(error: string): StatusError {
  return new StatusError("FAILED_PRECONDITION", "CONNECTION_FAILED", error || "The connection has ended.");
}
