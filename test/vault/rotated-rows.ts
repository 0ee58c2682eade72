// Rows for tests of key rotation: sealed as the vault seals them, written without its API, so that thousands take a second.
import type { VaultDatabase } from "../../services/vault/schema.ts";
import { type Secrets, sealWith } from "../../services/vault/secrets.ts";

/** Inserts credentials of an app with an API key and gives their account ids. */
export async function insertKeys(
  { db, secrets }: { readonly db: VaultDatabase; readonly secrets: Secrets },
  { projectId, prefix, count }: { readonly projectId: string; readonly prefix: string; readonly count: number },
): Promise<readonly string[]> {
  const environment = "development" as const;
  const whose = { projectId, environment, externalUserId: "user-1", appSlug: "sandbox_header_key" };
  const accountIds = Array.from({ length: count }, (_, index) => `apn_${prefix}_${index}`);
  for (let start = 0; start < count; start += 500) {
    const rows = accountIds.slice(start, start + 500).map(async (accountId) => {
      const owner = { ...whose, purpose: "credential" as const, id: accountId };
      const sealed = sealWith(await secrets.prepare(owner), owner, 1n, { fields: { api_key: keyOf(accountId) } });
      return {
        ...{ ...whose, ...sealed, accountId, oauthAppId: "", state: "ACTIVE" as const, stateReason: "" },
        ...{ scopes: [], generation: 1n },
      };
    });
    await db
      .insertInto("credentials")
      .values(await Promise.all(rows))
      .execute();
  }
  return accountIds;
}

/** The API key of an account. */
export function keyOf(accountId: string): string {
  return `sandbox-key-${accountId}`;
}
