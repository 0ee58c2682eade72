// Export: every credential that can be opened, encrypted to the operator's key, page by page, so that a million need no more
// memory than a hundred. One that cannot be opened is named and stops nobody.
import { StatusError } from "#libs/errors.ts";
import { type Actor, accountOf, insertAuditEntries } from "./audit-entries.ts";
import { recordOf } from "./credential-record.ts";
import { type CredentialMaterial, credentialOwner, listStored, type StoredFilter } from "./credentials.ts";
import { encryptRecord, type JweKey } from "./jwe.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";

/** One account's share of an export: a JWE, or why there is none. */
export type Exported =
  | { readonly accountId: string; readonly jwe: string }
  | { readonly accountId: string; readonly error: string };

const pageRows = 100;

/** Goes through all credentials of the filter in the order of their keys. */
export async function* exportCredentials(
  { db, secrets }: { readonly db: VaultDatabase; readonly secrets: Secrets },
  filter: StoredFilter,
  { recipient, actor }: { readonly recipient: JweKey; readonly actor: Actor },
): AsyncGenerator<Exported> {
  let after = { projectId: "", accountId: "" };
  for (;;) {
    const rows = await listStored(db, filter, after, pageRows);
    // Before the first of them goes out: what is not audited is not exported.
    const action = "credential.exported" as const;
    await insertAuditEntries(db, ...rows.map((row) => ({ action, actor, ...accountOf(row) })));
    for (const row of rows) {
      const { accountId } = row;
      try {
        const material = await secrets.open<CredentialMaterial>(credentialOwner(row), row);
        yield { accountId, jwe: await encryptRecord(recipient, recordOf(row, material)) };
      } catch (error) {
        if (!(error instanceof StatusError) || error.code !== "DATA_LOSS") throw error;
        yield { accountId, error: error.reason };
      }
    }
    const last = rows.at(-1);
    if (last === undefined || rows.length < pageRows) return;
    after = last;
  }
}
