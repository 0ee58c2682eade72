// VerifyConnection: the product's backend says that the user who is signed in there is the one whose browser has agreed, and
// the account is made. Why this is needed: verification.ts. The credential has been in the vault since the user agreed; without
// this call it is destroyed. A repeat gets the same answer.
import { StatusError } from "#libs/errors.ts";
import type { Call } from "#libs/rpc.ts";
import { takeReservation } from "./account-reservations.ts";
import { getConnectToken } from "./connect-tokens.ts";
import { connectAccount } from "./connection-outcomes.ts";
import { endConnection, getConnection, lockConnection } from "./connections.ts";
import { ensureUser } from "./external-users.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { connectionMessage } from "./messages.ts";
import type { AccountDatabase, ConnectionRow } from "./schema.ts";
import { isVerifierOf } from "./verification.ts";

export function verifyConnectionHandler(
  { db, developmentUsers }: { db: AccountDatabase; developmentUsers: number },
  now: () => number,
): HandlerGroup<"verifyConnection"> {
  /** Makes the account of a connection that waits; undefined when it waits no more. */
  async function verify(connection: ConnectionRow, call: Call): Promise<ConnectionRow | undefined> {
    const { projectId, id, environment, externalUserId, appSlug, oauthAppId, accountId } = connection;
    const { webhookUri, actorMemberId: ownerMemberId } = await getConnectToken(
      db,
      projectId,
      connection.connectTokenId,
    );
    const { accountName: name, authorizedScopes } = connection;
    const account = {
      projectId,
      id: accountId,
      environment,
      externalUserId,
      appSlug,
      oauthAppId,
      name,
      authorizedScopes,
      ownerMemberId,
    };
    const time = new Date(now());
    return db.transaction().execute(async (tx) => {
      if (!(await lockConnection(tx, connection, "AWAITING_VERIFICATION"))) return undefined;
      await takeReservation(tx, { projectId, accountId });
      await ensureUser(tx, connection, time, developmentUsers);
      const connected = { account, reconnects: false, connectionId: id, webhookUri };
      await connectAccount(tx, connected, { action: "VerifyConnection", call, time });
      return endConnection(tx, connection);
    });
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
