// A lease: an account's access material for some seconds, refreshed first where it has ended. A token that is still valid is
// leased while its refresh runs elsewhere or fails; who waits is bounded by the caller's deadline.
import type { Catalog, CatalogApp } from "#libs/catalog.ts";
import { notFound, StatusError } from "#libs/errors.ts";
import { fillInjection, type Injection } from "#libs/injection-templates.ts";
import { type Patience, within } from "#libs/patience.ts";
import type { Call } from "#libs/rpc.ts";
import { type Actor, accountOf, actorOf } from "./audit-entries.ts";
import type { AuditWriter } from "./audit-writer.ts";
import {
  type CredentialFilter,
  type CredentialMaterial,
  type CredentialRow,
  credentialOwner,
  getCredential,
} from "./credentials.ts";
import { leaseMs } from "./lease-watchers.ts";
import { findApp } from "./own-apps.ts";
import type { Refresher } from "./refresh.ts";
import { isDue, isValid } from "./refresh-times.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";

/** What a proxy may use, and until when. */
export interface Lease extends Injection {
  readonly appSlug: string;
  readonly proxyEnabled: boolean;
  readonly generation: bigint;
  readonly leaseExpireTime: Date;
  readonly leaseDurationMs: number;
  readonly refreshed: boolean;
  readonly authFailureRules: CatalogApp["proxy"]["auth_failure"];
  readonly echoAllowed: boolean;
  readonly refreshable: boolean;
}

/** What leases are made from. */
export interface LeaseOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly refresher: Refresher;
  readonly audit: AuditWriter;
}

/** Who asks, and for how long they wait. */
export type LeaseCall = Patience & Pick<Call, "caller" | "requestId">;

// For how long a refresh is waited for while the old token still works: a provider that hangs must not be felt.
const validWaitMs = 1_000;

/** Leases one account's material, or says why there is none. */
export async function leaseCredential(
  options: LeaseOptions,
  filter: CredentialFilter,
  call: LeaseCall,
): Promise<Lease> {
  const { row, refreshed } = await freshCredential(options, filter, call);
  return leaseOf(options, row, { refreshed, actor: actorOf(call) });
}

/** The lease of a credential as it was read just now. */
export async function leaseOf(
  { db, catalog, secrets, audit }: Pick<LeaseOptions, "db" | "catalog" | "secrets" | "audit">,
  row: CredentialRow,
  { refreshed, actor }: { readonly refreshed: boolean; readonly actor: Actor },
): Promise<Lease> {
  const app = await findApp({ db, catalog }, row);
  if (app === undefined) throw notFound("app");
  const material = await secrets.open<CredentialMaterial>(credentialOwner(row), row);
  const readMs = row.readTime.getTime();
  const leaseDurationMs = Math.min(leaseMs, (row.expireTime?.getTime() ?? Number.POSITIVE_INFINITY) - readMs);
  const lease = {
    ...fillInjection(app, material),
    appSlug: app.slug,
    proxyEnabled: app.proxy.enabled,
    generation: row.generation,
    leaseExpireTime: new Date(readMs + leaseDurationMs),
    leaseDurationMs,
    refreshed,
    authFailureRules: app.proxy.auth_failure,
    echoAllowed: app.proxy.echo_allowed,
    refreshable: material.refreshToken !== undefined && !row.shadow,
  };
  // At last: what cannot be audited is not given out.
  audit.note({ action: "credential.leased", actor, ...accountOf(row) });
  return lease;
}

async function freshCredential(
  { db, refresher }: LeaseOptions,
  filter: CredentialFilter,
  patience: Patience,
): Promise<{ row: CredentialRow; refreshed: boolean }> {
  const row = await getCredential(db, filter);
  requireUsable(row);
  if (!isDue(row) || (isValid(row) && isBackingOff(row))) return { row, refreshed: false };
  if (!isBackingOff(row)) {
    const deadlineMs = isValid(row) ? Math.min(patience.deadlineMs, Date.now() + validWaitMs) : patience.deadlineMs;
    await within(refresher.refresh(row), { ...patience, deadlineMs }).catch((error: unknown) => {
      if (!isValid(row)) throw error;
    });
  }
  const after = await getCredential(db, filter);
  requireUsable(after);
  if (!isValid(after)) throw after.shadow ? shadowed() : refreshFailing(after);
  return { row: after, refreshed: after.generation !== row.generation };
}

/** Throws what tells the caller that the credential cannot be used any more. */
export function requireUsable({ state }: Pick<CredentialRow, "state">): void {
  requireUnrevoked({ state });
  if (state === "NEEDS_REAUTH") {
    throw new StatusError("FAILED_PRECONDITION", "NEEDS_REAUTH", "The user has to connect the account again.");
  }
}

/** Throws for what is destroyed. */
export function requireUnrevoked({ state }: Pick<CredentialRow, "state">): void {
  if (state === "REVOKED") {
    throw new StatusError("FAILED_PRECONDITION", "ACCOUNT_REVOKED", "The account was revoked.");
  }
}

/** What is only shadowed cannot be refreshed. */
export function shadowed(): StatusError {
  return new StatusError(
    "FAILED_PRECONDITION",
    "SHADOWED",
    "The credential was imported as a shadow and is not refreshed here: cut it over.",
  );
}

function isBackingOff({ retryTime, readTime }: CredentialRow): boolean {
  return retryTime !== null && retryTime > readTime;
}

function refreshFailing({ stateReason, retryTime }: CredentialRow): StatusError {
  return new StatusError("UNAVAILABLE", "REFRESH_FAILING", "The access token has ended and could not be refreshed.", {
    metadata: {
      ...(stateReason !== "" && { state_reason: stateReason }),
      ...(retryTime !== null && { retry_time: retryTime.toISOString() }),
    },
  });
}
