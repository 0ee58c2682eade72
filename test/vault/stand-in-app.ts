// One more app of a test's catalog, with a token endpoint of its own that answers what the test says, and imported accounts.
import type { CatalogApp } from "#libs/catalog.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { isOauthApp } from "../../services/vault/provider.ts";
import { type ProviderShim, startProviderShim } from "../support/provider-shim.ts";
import { testTls } from "../support/tls.ts";
import { soon, type VaultFixture, whose } from "./vault-fixture.ts";

/** What a stand-in differs in from the sandbox. */
export interface StandInChange {
  readonly lifecycle?: Partial<CatalogApp["lifecycle"]>;
  readonly token?: Partial<NonNullable<CatalogApp["oauth2"]>["token"]>;
  readonly errors?: Partial<NonNullable<CatalogApp["oauth2"]>["errors"]>;
}

/** An answer of a token endpoint that grants. */
export function granted(more: object = {}): { status: number; body: string } {
  const token = () => `sandbox-token-${Math.random().toString(36).slice(2)}`;
  const body = { access_token: token(), refresh_token: token(), expires_in: 3600, ...more };
  return { status: 200, body: JSON.stringify(body) };
}

/** Adds the app. Add it before the vault that is to know it starts its loop. */
export async function addApp(vault: VaultFixture, slug: string, change: StandInChange = {}) {
  const sandbox = vault.catalog.get("sandbox");
  if (sandbox === undefined || !isOauthApp(sandbox)) throw new Error("the sandbox is not in the catalog");
  const shim: ProviderShim = await startProviderShim(vault.provider.url, await testTls("sandbox"));
  vault.ends.push(() => shim.stop());
  shim.misbehave(() => granted());
  vault.exemptTargets.push(shim.address);
  const { oauth2, lifecycle } = sandbox;
  vault.catalog.set(slug, {
    ...{ ...sandbox, slug },
    oauth2: {
      ...oauth2,
      token: { ...oauth2.token, ...change.token, url: `${shim.url}/token` },
      errors: { ...oauth2.errors, ...change.errors },
    },
    lifecycle: { ...lifecycle, ...change.lifecycle },
  });
  const oauthAppId = `oa_${slug}`;
  const client = { projectId: "proj_1", oauthAppId, appSlug: slug, clientId: "deputy-test" };
  const putClient = (clientSecrets = ["any"]) => vault.asAccount.putOauthClient({ ...client, clientSecrets }, soon());
  await putClient();

  /** An account whose access token lives for so long; due for a refresh at once unless told otherwise. */
  async function importAccount({ lifetimeSeconds = 600, isDue = true } = {}): Promise<string> {
    const accountId = vault.newAccountId();
    const value = {
      accessToken: `sandbox-token-access-${accountId}`,
      refreshToken: `sandbox-token-refresh-${accountId}`,
      expireTime: new Date(Date.now() + lifetimeSeconds * 1000),
    };
    const request = { ...whose, environment: Environment.DEVELOPMENT, accountId, appSlug: slug, oauthAppId };
    await vault.asAccount.storeCredential({ ...request, material: { $case: "grant", value } }, soon());
    if (isDue) await vault.makeDue(accountId);
    return accountId;
  }

  const importAccounts = (count: number, of: { lifetimeSeconds?: number; isDue?: boolean } = {}) =>
    Promise.all(Array.from({ length: count }, () => importAccount(of)));
  return { slug, oauthAppId, shim, putClient, importAccount, importAccounts };
}
