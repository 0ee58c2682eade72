// How a connection's end is written down: the account, the event for those who listen, the audit entry. All of it in the
// transaction of the end, so that none of them is there without the others. An event names the connection and the address
// that its connect token wants told; whoever delivers it reads the rest.
import type { Call } from "#libs/rpc.ts";
import { insertAccount, type NewAccount, toldOfAccount, updateReconnectedAccount } from "./accounts.ts";
import { insertAuditEntries } from "./audit-entries.ts";
import { insertEvents } from "./events.ts";
import type { AccountDatabase, AccountRow, ConnectionRow, ConnectTokenRow } from "./schema.ts";

/** By what, for whom and where from an account was connected. */
export interface Connected {
  readonly account: NewAccount;
  /** The account as it was before, when it is connected again. */
  readonly before?: AccountRow | undefined;
  readonly reconnects: boolean;
  /** Empty without one. */
  readonly connectionId: string;
  readonly webhookUri: string;
}

/** Who did it, by which RPC, and when. */
export interface OutcomeCall {
  readonly action: string;
  readonly call: Pick<Call, "caller" | "requestId">;
  readonly time: Date;
}

/** Makes the account, or renews it, and tells so. Undefined when the account to be renewed was revoked meanwhile. */
export async function connectAccount(
  tx: AccountDatabase,
  { account, before, reconnects, connectionId, webhookUri }: Connected,
  { action, call, time }: OutcomeCall,
): Promise<AccountRow | undefined> {
  const row = reconnects ? await updateReconnectedAccount(tx, account, time) : await insertAccount(tx, account, time);
  if (row === undefined) return undefined;
  const { projectId, environment, externalUserId, id } = row;
  await insertEvents(tx, time, {
    ...{ projectId, environment, externalUserId, accountId: id },
    type: reconnects ? "account.reconnected" : "account.connected",
    data: { appSlug: row.appSlug, name: row.name, ...originOf({ connectionId, webhookUri }) },
  });
  await insertAuditEntries(tx, call, time, {
    ...{ projectId, action, resourceId: id, after: toldOfAccount(row) },
    ...(before && { before: toldOfAccount(before) }),
  });
  return row;
}

/** A connection that has failed, and the address of its connect token. */
export interface FailedConnection {
  readonly connection: ConnectionRow;
  readonly webhookUri: string;
}

/** Tells that connections have failed, all at once. The account is named when it lives on. */
export async function tellFailures(
  tx: AccountDatabase,
  failed: readonly FailedConnection[],
  time: Date,
): Promise<void> {
  const events = failed.map(({ connection, webhookUri }) => {
    const { projectId, environment, externalUserId, id, reconnects, accountId, appSlug, error } = connection;
    return {
      ...{ projectId, environment, externalUserId, accountId: reconnects ? accountId : "" },
      type: "connection.failed" as const,
      data: { appSlug, error, ...originOf({ connectionId: id, webhookUri }) },
    };
  });
  await insertEvents(tx, time, ...events);
}

/** The end of a connection without an account, or the wait for its verification, as the audit tells it. */
export async function auditConnection(
  tx: AccountDatabase,
  { projectId, id, externalUserId, appSlug, oauthAppId, state, error }: ConnectionRow,
  { action, call, time }: OutcomeCall,
): Promise<void> {
  const after = { state, externalUserId, appSlug, oauthAppId, ...(error !== "" && { error }) };
  await insertAuditEntries(tx, call, time, { projectId, action, resourceId: id, after });
}

/** The user as who acts: the redirect brings no token, but proves the browser that began with one. */
export function actingUser(
  { projectId, externalUserId, connectTokenId, environment }: ConnectionRow,
  call: Pick<Call, "requestId">,
): Pick<Call, "caller" | "requestId"> {
  const token = { subject: connectTokenId, projectId, environment, externalUserId, scopes: [], expireMs: 0 };
  return { caller: { token }, requestId: call.requestId };
}

/** The address of a token's row. */
export function webhookOf(token: ConnectTokenRow | undefined): string {
  return token?.webhookUri ?? "";
}

function originOf({ connectionId, webhookUri }: { readonly connectionId: string; readonly webhookUri: string }) {
  return { ...(connectionId !== "" && { connectionId }), ...(webhookUri !== "" && { webhookUri }) };
}
