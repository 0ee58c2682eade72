// What nobody finishes: connections whose user never came back or whose product never verified, credentials that the vault
// holds under an id of which no account was made, and OAuth clients of end users that no account has any more. Any number of
// processes may sweep at the same time; each step can be repeated, and one that fails is taken up by the next sweep.
import { randomUUID } from "node:crypto";
import type { Logger } from "#libs/log.ts";
import { deleteDoomed, doomExpiredReservations, doomReservation, listDoomed } from "./account-reservations.ts";
import { getConnectToken } from "./connect-tokens.ts";
import { tellFailure } from "./connection-outcomes.ts";
import { failExpiredConnections } from "./connections.ts";
import type { Vault } from "./handler-group.ts";
import { deleteOwnClient, listUnusedClients } from "./own-oauth-clients.ts";
import type { AccountDatabase, AccountReservationRow } from "./schema.ts";

/** How often a process sweeps. */
const intervalMs = 30_000;

// A redirect may come in the last moment, and its exchange then takes up to a minute.
const lateMs = 2 * 60_000;
const vaultTimeoutMs = 10_000;
const batchSize = 100;

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "destroyCredentials" | "destroyOauthClient">;
}

/** One sweep. */
export async function sweepConnecting({ db, vault }: Collaborators, time: Date): Promise<void> {
  await failOverdue(db, time);
  await doomExpiredReservations(db, time);
  await each(await listDoomed(db, batchSize), (reservation) => destroyRemains({ db, vault }, reservation, time));
  await each(await listUnusedClients(db, time, batchSize), async ({ projectId, oauthAppId }) => {
    await vault.destroyOauthClient({ projectId, oauthAppId }, ownCall());
    await deleteOwnClient(db, { projectId, oauthAppId });
  });
}

/** Destroys what the vault may hold under a reservation that was given up, and forgets it once nothing can come after. */
export async function destroyRemains(
  { db, vault }: Pick<Collaborators, "db"> & { readonly vault: Pick<Vault, "destroyCredentials"> },
  reservation: AccountReservationRow,
  time: Date,
): Promise<void> {
  const { projectId, environment, accountId } = reservation;
  await vault.destroyCredentials({ projectId, environment, accountIds: [accountId] }, ownCall());
  await deleteDoomed(db, reservation, time);
}

/** Sweeps now and then until it is stopped. */
export function startSweep(collaborators: Collaborators, log: Logger): { stop(): Promise<void> } {
  let sweeping: Promise<void> = Promise.resolve();
  const timer = setInterval(() => {
    sweeping = sweeping
      .then(() => sweepConnecting(collaborators, new Date()))
      .catch((error) => log.warn({ err: error }, "what nobody connected could not be cleared away: tried again later"));
  }, intervalMs);
  return {
    async stop() {
      clearInterval(timer);
      await sweeping;
    },
  };
}

/** One after the other; one that fails does not keep the others from being done. */
async function each<Item>(items: readonly Item[], work: (item: Item) => Promise<void>): Promise<void> {
  const failures: unknown[] = [];
  for (const item of items) await work(item).catch((error: unknown) => failures.push(error));
  if (failures.length > 0) throw failures[0];
}

function ownCall() {
  return { deadlineMs: Date.now() + vaultTimeoutMs, requestId: randomUUID() };
}

async function failOverdue(db: AccountDatabase, time: Date): Promise<void> {
  await db.transaction().execute(async (tx) => {
    const unverified = "The connection was not verified in time.";
    const uncompleted = "The connection was not completed in time.";
    const late = new Date(time.getTime() - lateMs);
    const overdue = [
      ...(await failExpiredConnections(tx, "AWAITING_VERIFICATION", time, unverified)),
      ...(await failExpiredConnections(tx, "PENDING", late, uncompleted)),
    ];
    for (const connection of overdue) {
      const token = await getConnectToken(tx, connection.projectId, connection.connectTokenId);
      // Of several attempts with one token those that nobody went on with are no news once another has it.
      if (token.claimedBy === null || token.claimedBy === connection.id) {
        await tellFailure(tx, connection, token.webhookUri, time);
      }
      if (!connection.reconnects) await doomReservation(tx, connection, time);
    }
  });
}
