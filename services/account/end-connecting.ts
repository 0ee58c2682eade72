// Ends what a user has begun to connect, for whoever revokes the user: connect tokens speak for nobody any more, open
// connections fail, and no account can be made of a credential that the vault is being given at this moment; the sweep
// (sweep-connecting.ts) destroys it.
//
// In this order: whoever makes an account holds its token's row or its connection's row before its reservation, so either it
// is done when we come, and the account is there to be revoked, or it finds what we wrote.
import { doomReservationsOf } from "./account-reservations.ts";
import { endConnectTokens, getConnectToken } from "./connect-tokens.ts";
import { tellFailure } from "./connection-outcomes.ts";
import { failConnectionsOf } from "./connections.ts";
import type { AccountDatabase, EnvironmentNumber } from "./schema.ts";

/** Whose connecting: all users of the environment when none is named. */
export interface ConnectingScope {
  readonly projectId: string;
  readonly environment: number;
  readonly externalUserId: string;
}

/** Ends all of it in one transaction. The connections fail with this error, a text for people. */
export async function endConnecting(
  db: AccountDatabase,
  of: ConnectingScope,
  time: Date,
  error = "Access was revoked meanwhile.",
): Promise<void> {
  const scope = { ...of, environment: of.environment as EnvironmentNumber };
  await db.transaction().execute(async (tx) => {
    await endConnectTokens(tx, scope, time);
    for (const connection of await failConnectionsOf(tx, scope, error)) {
      const token = await getConnectToken(tx, connection.projectId, connection.connectTokenId);
      await tellFailure(tx, connection, token.webhookUri, time);
    }
    await doomReservationsOf(tx, scope, time);
  });
}
