// Reveals a credential's secrets, to who has that right of its own. The entry of the audit is committed before the answer: what
// cannot be audited is not revealed.
import { type Actor, accountOf, insertAuditEntries } from "./audit-entries.ts";
import {
  type CredentialFilter,
  type CredentialMaterial,
  type CredentialRow,
  credentialOwner,
  getCredential,
} from "./credentials.ts";
import { requireUnrevoked } from "./lease.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";

/** A credential with its secrets by name. */
export interface RevealedCredential {
  readonly row: CredentialRow;
  readonly values: Readonly<Record<string, string>>;
}

/** Opens a credential as it is stored: nothing is refreshed for it. */
export async function revealCredential(
  { db, secrets }: { readonly db: VaultDatabase; readonly secrets: Secrets },
  filter: CredentialFilter,
  { purpose, actor }: { readonly purpose: string; readonly actor: Actor },
): Promise<RevealedCredential> {
  const row = await getCredential(db, filter);
  requireUnrevoked(row);
  const { accessToken, refreshToken, fields } = await secrets.open<CredentialMaterial>(credentialOwner(row), row);
  await insertAuditEntries(db, { action: "credential.revealed", actor, purpose, ...accountOf(row) });
  const tokens = {
    ...(accessToken !== undefined && { access_token: accessToken }),
    ...(refreshToken !== undefined && { refresh_token: refreshToken }),
  };
  return { row, values: { ...fields, ...tokens } };
}
