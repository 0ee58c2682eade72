// What all revocations share. For each account: REVOKING here, destroyed in the vault, REVOKED here, receipt. From the first
// step on every lookup refuses the account, so a failure anywhere leaves it unusable and never half open; a repeat takes up
// what is REVOKING. The vault answers only when no lease of the credentials can be in use any more. The last step tells of
// itself: one audit entry and one event for each account, in its transaction, whoever began it.
import type { Call } from "#libs/rpc.ts";
import { ProviderRevocation, RevocationReceipt } from "#proto/deputy/account/v1/accounts.ts";
import { type ClaimedAccount, claimForRevocation, countUnrevoked, finishRevocation } from "./account-revocations.ts";
import { type AccountFilter, toldOfAccount } from "./accounts.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import { insertEvents } from "./events.ts";
import { ownRight, type Vault } from "./handler-group.ts";
import type { AccountDatabase } from "./schema.ts";

// One transaction of the vault each: large enough to be quick, small enough for receipts to flow and locks to be short.
export const batchSize = 400;

/** What revoking works with. */
export interface Revoking {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "destroyCredentials">;
  readonly now: () => number;
}

/** The RPC that revokes, for the audit, and who called it. */
export interface RevokingCall {
  readonly action: "DeleteAccount" | "RevokeAllAccounts" | "DeleteUser";
  readonly call: Call;
}

/** The receipt of one account, and how many are selected in all. */
export interface RevokedAccount {
  readonly receipt: RevocationReceipt;
  readonly totalSize: number;
}

/**
 * Revokes what the filter selects, until nothing is left: accounts that are connected while this runs go too. While a batch is
 * ended here and told, the vault is at work on the next; whoever leaves in the middle leaves that REVOKING, to be taken up again.
 */
export async function* revokeMatching(
  revoking: Revoking,
  filter: AccountFilter,
  by: RevokingCall,
): AsyncGenerator<RevokedAccount> {
  let totalSize = await countUnrevoked(revoking.db, filter);
  let sent = 0;
  for (let sentBefore = -1; sentBefore < sent; ) {
    sentBefore = sent;
    for await (const batch of oneAhead(destroyedBatches(revoking, filter, by))) {
      totalSize = Math.max(totalSize, sent + batch.rows.length);
      for (const receipt of await endAccounts(revoking, batch, by)) yield { receipt, totalSize };
      sent += batch.rows.length;
    }
  }
}

/** Destroys the credentials of accounts of one environment that are no longer ACTIVE. Of those REVOKED it gives the receipts. */
export async function destroyAccounts(
  revoking: Revoking,
  rows: readonly ClaimedAccount[],
  by: RevokingCall,
): Promise<readonly RevocationReceipt[]> {
  return endAccounts(revoking, await destroyCredentialsOf(revoking, rows, by), by);
}

/** Accounts that are REVOKING, or were REVOKED before, and what the vault says of their credentials. */
interface DestroyedBatch {
  readonly rows: readonly ClaimedAccount[];
  readonly receipts: readonly RevocationReceipt[];
}

/** Goes through the accounts once, oldest first. */
async function* destroyedBatches(
  revoking: Revoking,
  filter: AccountFilter,
  by: RevokingCall,
): AsyncGenerator<DestroyedBatch> {
  const { db, now } = revoking;
  let after: ClaimedAccount | undefined;
  do {
    const rows = await claimForRevocation(db, filter, { size: batchSize, after }, new Date(now()));
    if (rows.length > 0) yield await destroyCredentialsOf(revoking, rows, by);
    after = rows.length < batchSize ? undefined : rows.at(-1);
  } while (after !== undefined);
}

async function destroyCredentialsOf(
  { vault }: Revoking,
  rows: readonly ClaimedAccount[],
  { call }: RevokingCall,
): Promise<DestroyedBatch> {
  const [first] = rows;
  if (first === undefined) return { rows, receipts: [] };
  const { projectId, environment } = first;
  const accountIds = rows.map(({ id }) => id);
  const { receipts } = await vault.destroyCredentials({ projectId, environment, accountIds }, ownRight(call));
  return { rows, receipts };
}

/** The last step: gives the receipts, those that have none from the vault among them. */
async function endAccounts(
  { db, now }: Revoking,
  { rows, receipts }: DestroyedBatch,
  { action, call }: RevokingCall,
): Promise<readonly RevocationReceipt[]> {
  const [first] = rows;
  if (first === undefined) return [];
  const accountIds = rows.map(({ id }) => id);
  const byAccount = new Map(receipts.map((receipt) => [receipt.accountId, receipt]));
  const time = new Date(now());
  const receiptOf = (row: ClaimedAccount) => byAccount.get(row.id) ?? nothingDestroyed(row, time);
  await db.transaction().execute(async (tx) => {
    const endedIds = await finishRevocation(tx, first.projectId, accountIds, time);
    // Nobody changes an account that is REVOKING: but for its state it is as it was claimed.
    const ended = rows.filter(({ id }) => endedIds.has(id));
    await insertAuditEntries(tx, call, time, ...ended.map((row) => auditEntryOf(row, action)));
    await insertEvents(tx, time, ...ended.map((row) => eventOf(row, receiptOf(row))));
  });
  return rows.map(receiptOf);
}

/** The same items, each begun while the one before it is in use. */
async function* oneAhead<Item>(items: AsyncGenerator<Item>): AsyncGenerator<Item> {
  const begin = () => {
    const item = items.next();
    // Told when it is its turn.
    item.catch(() => undefined);
    return item;
  };
  let next = begin();
  try {
    for (let { value, done } = await next; done !== true; { value, done } = await next) {
      next = begin();
      yield value;
    }
  } finally {
    await next.catch(() => undefined);
  }
}

/** Whose account it is, as receipts say it. */
export function whose({ id, externalUserId, appSlug }: ClaimedAccount) {
  return { accountId: id, externalUserId, appSlug };
}

function auditEntryOf(row: ClaimedAccount, action: RevokingCall["action"]) {
  const told = toldOfAccount(row);
  const [before, after] = [
    { ...told, state: "ACTIVE" },
    { ...told, state: "REVOKED" },
  ];
  return { projectId: row.projectId, resourceId: row.id, action, before, after };
}

function eventOf(row: ClaimedAccount, { destroyTime, providerRevocation }: RevocationReceipt) {
  const { projectId, environment, externalUserId, id: accountId, appSlug } = row;
  const name = Object.entries(ProviderRevocation).find(([, number]) => number === providerRevocation)?.[0] ?? "";
  const data = { appSlug, revokeTime: row.revokeTime, destroyTime, providerRevocation: name };
  return { projectId, environment, externalUserId, accountId, type: "account.revoked", data } as const;
}

/** The receipt of an account for which the vault had no credential. */
function nothingDestroyed(row: ClaimedAccount, time: Date): RevocationReceipt {
  return RevocationReceipt.fromPartial({
    ...whose(row),
    destroyTime: row.revokeTime ?? time,
    providerRevocation: ProviderRevocation.NOT_APPLICABLE,
  });
}
