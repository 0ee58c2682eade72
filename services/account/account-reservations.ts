// The table of reservations: ids under which the vault may come to hold a credential before there is an account of that name.
// The vault seals first and the account is made second, in two databases, so a process that dies in between would leave a
// credential that nobody can use and nobody destroys. Hence:
//
//   reserved                committed before the vault is asked
//   account made            the same transaction deletes the reservation; without one there is no account
//   given up, or past its end
//                           doomed: from this commit on no account can be made of it; then the vault destroys what it may
//                           hold under the id, and the reservation is deleted. Killed in between, the next sweep repeats it.
//
// Who is at it gives up at its own end. One that others give up may be in the vault's hands at that moment, and be sealed after
// its remains were destroyed: such a reservation stays until any call of that time is over, and is cleared away at each sweep.
import { StatusError } from "#libs/errors.ts";
import type { AccountDatabase, AccountReservationRow } from "./schema.ts";

/** Names one reservation. */
export type ReservationKey = Pick<AccountReservationRow, "projectId" | "accountId">;

// Longer than any call that makes an account; a sweep may come as late as it likes.
const reservedMs = 15 * 60_000;

// Longer than a vault may be at what it was asked before.
const lingerMs = 2 * 60_000;

/** Reserves an id, until the time given at least. */
export async function reserveAccount(
  db: AccountDatabase,
  of: Omit<AccountReservationRow, "expireTime" | "doomed">,
  time: Date,
): Promise<void> {
  const { projectId, accountId, environment, externalUserId } = of;
  const expireTime = new Date(time.getTime() + reservedMs);
  await db
    .insertInto("accountReservations")
    .values({ projectId, accountId, environment, externalUserId, expireTime, doomed: false })
    .execute();
}

/** Takes the reservation for the account that is made in this transaction; throws when it was given up meanwhile. */
export async function takeReservation(tx: AccountDatabase, { projectId, accountId }: ReservationKey): Promise<void> {
  const { numDeletedRows } = await tx
    .deleteFrom("accountReservations")
    .where("projectId", "=", projectId)
    .where("accountId", "=", accountId)
    .where("doomed", "=", false)
    .executeTakeFirst();
  if (numDeletedRows !== 1n) {
    throw new StatusError("FAILED_PRECONDITION", "CONNECTING_ENDED", "Connecting was ended meanwhile: start again.");
  }
}

/** Keeps a reservation longer: its connection waits to be verified. */
export async function extendReservation(
  tx: AccountDatabase,
  { projectId, accountId }: ReservationKey,
  until: Date,
): Promise<void> {
  const expireTime = new Date(until.getTime() + reservedMs);
  await tx
    .updateTable("accountReservations")
    .set({ expireTime })
    .where("projectId", "=", projectId)
    .where("accountId", "=", accountId)
    .where("doomed", "=", false)
    .execute();
}

/** Gives up a reservation that nobody is at any more; undefined when its account was made. */
export async function doomReservation(
  db: AccountDatabase,
  { projectId, accountId }: ReservationKey,
  time: Date,
): Promise<AccountReservationRow | undefined> {
  return db
    .updateTable("accountReservations")
    .set({ doomed: true, expireTime: time })
    .where("projectId", "=", projectId)
    .where("accountId", "=", accountId)
    .returningAll()
    .executeTakeFirst();
}

/** Gives up all reservations of a user, or of all users of the environment when none is named, whoever is at them. */
export async function doomReservationsOf(
  db: AccountDatabase,
  {
    projectId,
    environment,
    externalUserId,
  }: Pick<AccountReservationRow, "projectId" | "environment" | "externalUserId">,
  time: Date,
): Promise<void> {
  await db
    .updateTable("accountReservations")
    .set({ doomed: true, expireTime: new Date(time.getTime() + lingerMs) })
    .where("projectId", "=", projectId)
    .where("environment", "=", environment)
    .$if(externalUserId !== "", (update) => update.where("externalUserId", "=", externalUserId))
    .where("doomed", "=", false)
    .execute();
}

/** Gives up what is past its end. */
export async function doomExpiredReservations(db: AccountDatabase, time: Date): Promise<void> {
  await db
    .updateTable("accountReservations")
    .set({ doomed: true })
    .where("expireTime", "<=", time)
    .where("doomed", "=", false)
    .execute();
}

/** Some of those that were given up. */
export async function listDoomed(db: AccountDatabase, limit: number): Promise<readonly AccountReservationRow[]> {
  return db
    .selectFrom("accountReservations")
    .selectAll()
    .where("doomed", "=", true)
    .orderBy("expireTime")
    .limit(limit)
    .execute();
}

/** Forgets a reservation whose remains are gone, once nothing can come after. */
export async function deleteDoomed(
  db: AccountDatabase,
  { projectId, accountId }: ReservationKey,
  time: Date,
): Promise<void> {
  await db
    .deleteFrom("accountReservations")
    .where("projectId", "=", projectId)
    .where("accountId", "=", accountId)
    .where("doomed", "=", true)
    .where("expireTime", "<=", time)
    .execute();
}
