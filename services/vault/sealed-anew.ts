// Pending grants of the outbox that are sealed anew, each with its client under a data key of its own: those of a user who is erased,
// under the pseudonym, for a blob is bound to the user's id; and those that were taken over from credentials whose client goes, so
// that the client's end is not in the way. One that does not open, or has no client, is FAILED: its provider cannot be told.
import { StatusError } from "#libs/errors.ts";
import { findOauthClient } from "./oauth-clients.ts";
import { failRevocation, openRevocation, type RevocationRow, revocationOwner } from "./revocations.ts";
import type { EnvironmentName, RevocationsTable, VaultDatabase } from "./schema.ts";
import { type SealedColumns, type Secrets, sealWith } from "./secrets.ts";

interface SealOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
}

type Revocation = Omit<RevocationRow, "expired" | "readTime">;

const pageSize = 200;
// How many are opened and sealed at a time: with a remote key service each takes a round trip or two.
const atATime = 32;

/** Seals a user's grants under the pseudonym; gives how many there were. */
export async function sealUnderPseudonym(
  options: SealOptions,
  user: { readonly projectId: string; readonly environment: EnvironmentName; readonly externalUserId: string },
  pseudonym: string,
): Promise<number> {
  const page = pending(options.db, user.projectId)
    .where("environment", "=", user.environment)
    .where("externalUserId", "=", user.externalUserId);
  return sealAnew(options, () => page.execute(), { externalUserId: pseudonym });
}

/** Seals the grants that were taken over, with the client that they are of; gives how many there were. */
export async function sealWithClient(
  options: SealOptions,
  { projectId, oauthAppId }: Pick<RevocationsTable, "projectId"> & { readonly oauthAppId: string },
): Promise<number> {
  const page = pending(options.db, projectId)
    .where("oauthAppId", "=", oauthAppId)
    .where("credentialGeneration", "is not", null);
  return sealAnew(options, () => page.execute(), {});
}

function pending(db: VaultDatabase, projectId: string) {
  return db
    .selectFrom("revocations")
    .selectAll()
    .where("projectId", "=", projectId)
    .where("state", "=", "PENDING")
    .limit(pageSize);
}

/** Page after page: what is sealed anew, or ends meanwhile, is on none of them any more. */
async function sealAnew(
  options: SealOptions,
  readPage: () => Promise<readonly Revocation[]>,
  change: { readonly externalUserId?: string },
): Promise<number> {
  for (let sealed = 0; ; ) {
    const rows = await readPage();
    if (rows.length === 0) return sealed;
    for (let from = 0; from < rows.length; from += atATime) {
      await Promise.all(rows.slice(from, from + atATime).map((row) => sealOne(options, row, change)));
    }
    sealed += rows.length;
  }
}

async function sealOne(
  options: SealOptions,
  row: Revocation,
  change: { readonly externalUserId?: string },
): Promise<void> {
  const sealed = await sealedAs(options, row, { ...row, ...change });
  if (sealed === undefined) return failRevocation(options.db, row);
  await options.db
    .updateTable("revocations")
    .set({ ...sealed, ...change, credentialGeneration: null })
    .where("projectId", "=", row.projectId)
    .where("id", "=", row.id)
    .where("state", "=", "PENDING")
    .where("blob", "=", row.blob)
    .execute();
}

async function sealedAs(
  options: SealOptions,
  row: Revocation,
  changed: Revocation,
): Promise<SealedColumns | undefined> {
  try {
    const { client = await findOauthClient(options, row), ...material } = await openRevocation(options.secrets, row);
    if (client === undefined) return undefined;
    const owner = revocationOwner(changed);
    return sealWith(await options.secrets.prepare(owner), owner, 0n, { ...material, client });
  } catch (error) {
    if (error instanceof StatusError && error.code === "DATA_LOSS") return undefined;
    throw error;
  }
}
