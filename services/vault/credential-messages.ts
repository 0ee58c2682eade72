// What the handlers share: rows as messages of the contract, and the contract's environments as the tables name them.
import type { CatalogApp } from "#libs/catalog.ts";
import { ProviderRevocation, type RevocationReceipt } from "#proto/deputy/account/v1/accounts.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import type { CredentialChange } from "#proto/deputy/vault/v1/credential_changes.ts";
import { type Credential, CredentialState } from "#proto/deputy/vault/v1/credentials.ts";
import type { AuthFailureRule, InjectionLease } from "#proto/deputy/vault/v1/leases.ts";
import type { CredentialRow } from "./credentials.ts";
import type { Lease } from "./lease.ts";
import type { IssuedReceipt } from "./receipts.ts";
import type { EnvironmentName } from "./schema.ts";

/** The table's name of an environment. The contract's rules have refused the unspecified one. */
export function environmentName(environment: Environment): EnvironmentName {
  return environment === Environment.DEVELOPMENT ? "development" : "production";
}

/** What may be known of a credential. */
export function credentialMessage(row: CredentialRow): Credential {
  const { accountId, stateReason, generation, createTime, updateTime } = row;
  return {
    accountId,
    state: CredentialState[row.state],
    stateReason,
    generation,
    scopes: [...row.scopes],
    expireTime: row.expireTime ?? undefined,
    lastRefreshTime: row.lastRefreshTime ?? undefined,
    nextRefreshTime: row.nextRefreshTime ?? undefined,
    createTime,
    updateTime,
    grantExpireTime: row.grantExpireTime ?? undefined,
    grantNoticeTime: row.grantNoticeTime ?? undefined,
  };
}

/** A credential that has changed. */
export function changeMessage(row: CredentialRow): CredentialChange {
  const { projectId, failures } = row;
  const environment = row.environment === "development" ? Environment.DEVELOPMENT : Environment.PRODUCTION;
  return { projectId, environment, credential: credentialMessage(row), failures };
}

/** An app's rule for answers that refuse a credential. */
export function authFailureMessage({
  status,
  header,
  body,
}: CatalogApp["proxy"]["auth_failure"][number]): AuthFailureRule {
  return {
    status: status ?? 0,
    headerName: header?.name ?? "",
    headerValue: header?.value ?? "",
    bodyPath: body?.at ?? "",
    bodyValue: body?.value ?? "",
  };
}

/** The proof of one destruction. */
export function receiptMessage({ credential, jws }: IssuedReceipt): RevocationReceipt {
  return {
    accountId: credential.accountId,
    externalUserId: credential.externalUserId,
    appSlug: credential.appSlug,
    destroyTime: credential.revokeTime ?? undefined,
    providerRevocation: ProviderRevocation[credential.providerRevocation],
    jws,
  };
}

/** A lease as proxies get it. */
export function leaseMessage(lease: Lease): InjectionLease {
  return {
    ...lease,
    headers: [...lease.headers],
    query: [...lease.query],
    allowedDomains: [...lease.allowedDomains],
    allowedPorts: [...lease.allowedPorts],
    authFailureRules: lease.authFailureRules.map(authFailureMessage),
  };
}
