// Pending grants of the outbox that are sealed anew, each with its client under a data key of its own: those of a user who is
// erased, under the pseudonym, for a blob is bound to the user's id; and those that were taken over from credentials whose client
// goes, so that the client's end is not in the way. One that does not open, or has no client, is FAILED: its provider cannot be
// told. Whoever reads a record that somebody else is sealing at the same time changes nothing of it.
import { StatusError } from "#libs/errors.ts";
import { findOauthClient, type OauthClient } from "./oauth-clients.ts";
import { clientMissing, failRevocation, openRevocation, type RevocationRow, revocationOwner } from "./revocations.ts";
import type { EnvironmentName, VaultDatabase } from "./schema.ts";
import { type SealedColumns, type Secrets, sealWith } from "./secrets.ts";

interface SealOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
}

type Revocation = Omit<RevocationRow, "expired" | "readTime">;

/** What becomes different with the sealing. */
type Change = Partial<Pick<Revocation, "externalUserId">>;

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

/** Names a project's OAuth client. */
interface ClientKey {
  readonly projectId: string;
  readonly oauthAppId: string;
}

/** Seals the grants that were taken over with their client. */
export async function sealWithClient(options: SealOptions, key: ClientKey): Promise<void> {
  await sealAnew(options, () => takenOver(options.db, key).execute(), {});
}

/** Whether there are such grants. */
export async function hasTakenOver(db: VaultDatabase, key: ClientKey): Promise<boolean> {
  return (await takenOver(db, key).limit(1).execute()).length > 0;
}

function takenOver(db: VaultDatabase, { projectId, oauthAppId }: ClientKey) {
  return pending(db, projectId).where("oauthAppId", "=", oauthAppId).where("credentialGeneration", "is not", null);
}

function pending(db: VaultDatabase, projectId: string) {
  const records = db.selectFrom("revocations").selectAll().where("projectId", "=", projectId);
  return records.where("state", "=", "PENDING").orderBy("id").limit(pageSize);
}

/** Page after page: what is sealed anew, or ends meanwhile, is on none of them any more. */
async function sealAnew(
  options: SealOptions,
  readPage: () => Promise<readonly Revocation[]>,
  change: Change,
): Promise<number> {
  for (let sealed = 0; ; ) {
    const rows = await readPage();
    if (rows.length === 0) return sealed;
    const clients = clientsOf(options);
    for (let from = 0; from < rows.length; from += atATime) {
      await Promise.all(rows.slice(from, from + atATime).map((row) => sealOne(options, row, { change, clients })));
    }
    sealed += rows.length;
  }
}

type Clients = (row: Revocation) => Promise<OauthClient | undefined>;

/** Opens each client once. */
function clientsOf(options: SealOptions): Clients {
  const found = new Map<string, Promise<OauthClient | undefined>>();
  return (row) => {
    const name = JSON.stringify([row.oauthAppId, row.appSlug]);
    const client = found.get(name) ?? findOauthClient(options, row);
    found.set(name, client);
    return client;
  };
}

async function sealOne(
  options: SealOptions,
  row: Revocation,
  { change, clients }: { readonly change: Change; readonly clients: Clients },
): Promise<void> {
  const sealed = await sealedAs(options, { row, changed: { ...row, ...change }, clients });
  if (typeof sealed === "string") return failRevocation(options.db, row, { blob: row.blob, lastError: sealed });
  await options.db
    .updateTable("revocations")
    .set({ ...sealed, ...change, credentialGeneration: null })
    .where("projectId", "=", row.projectId)
    .where("id", "=", row.id)
    .where("state", "=", "PENDING")
    .where("blob", "=", row.blob)
    .execute();
}

/** Gives a stable name where there is nothing that could be sealed. */
async function sealedAs(
  { secrets }: SealOptions,
  { row, changed, clients }: { readonly row: Revocation; readonly changed: Revocation; readonly clients: Clients },
): Promise<SealedColumns | string> {
  try {
    const { client = await clients(row), ...material } = await openRevocation(secrets, row);
    if (client === undefined) return clientMissing;
    const owner = revocationOwner(changed);
    return sealWith(await secrets.prepare(owner), owner, 0n, { ...material, client });
  } catch (error) {
    if (error instanceof StatusError && error.code === "DATA_LOSS") return error.reason;
    throw error;
  }
}
