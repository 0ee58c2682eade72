// What becomes of a grant that the provider has just given: it is named, judged (grant-rules.ts), and sealed as the account's
// credential, in one transaction with the end of its authorization. One that is not kept is revoked at the provider, and
// nothing that the account had before is touched.
import type { Catalog } from "#libs/catalog.ts";
import type { Logger } from "#libs/log.ts";
import type { Actor } from "./audit-entries.ts";
import { type AuthorizationRow, failAuthorization, lockAuthorization, succeedAuthorization } from "./authorizations.ts";
import { lockCredential } from "./credentials.ts";
import { type GrantFault, type Identity, judgeIdentity, lacksScopes, lacksValues } from "./grant-rules.ts";
import { factsOf, materialOf } from "./grants.ts";
import { fetchIdentity } from "./identity.ts";
import { persist } from "./persist.ts";
import type { ProviderContext } from "./provider.ts";
import type { ProviderAccess } from "./provider-http.ts";
import { insertRevocation, prepareRevocation } from "./revocations.ts";
import type { VaultDatabase } from "./schema.ts";
import type { ReadyKey, Secrets } from "./secrets.ts";
import { endsSiblings, identityDigest } from "./shared-grants.ts";
import { storeCredential } from "./store.ts";
import type { TokenGrant } from "./token-answers.ts";

/** What keeping needs. */
export interface KeepOptions {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
  readonly catalog: Catalog;
  readonly providers: ProviderAccess;
  readonly log: Logger;
}

/** What the provider gave for a code, and what it is judged by. */
export interface Granted {
  readonly context: ProviderContext;
  readonly key: ReadyKey;
  readonly grant: TokenGrant;
  readonly actor: Actor;
  readonly allScopesRequired: boolean;
  /** Values that the redirect brought. */
  readonly fromRedirect: Readonly<Record<string, string>>;
}

/** A grant with all that is known of it, and what is wrong with it by itself. */
interface JudgedGrant extends Granted {
  readonly identity: Identity;
  readonly fault: GrantFault | undefined;
}

/** Keeps the grant, or ends the authorization as failed and queues the grant's revocation. */
export async function keepGrant(options: KeepOptions, row: AuthorizationRow, granted: Granted): Promise<void> {
  const { context, grant, allScopesRequired, fromRedirect } = granted;
  const { app } = context;
  const sofar = { ...context.fields, ...fromRedirect, ...grant.captured };
  const identity = await fetchIdentity(options.providers, { app, fields: sofar }, grant.accessToken);
  const fields = { ...sofar, ...identity.captured };
  const isPartial = allScopesRequired && lacksScopes(app, row.scopes, grant.scopes);
  const isIncomplete = lacksValues(app, fields);
  const fault: GrantFault | undefined = isPartial ? "SCOPES_MISSING" : isIncomplete ? "VALUES_MISSING" : undefined;
  const judged = { ...granted, context: { ...context, fields }, identity, fault };
  await persist(options.log, row, () => storeGrant(options, row, judged));
}

async function storeGrant(
  { db, secrets, catalog }: KeepOptions,
  row: AuthorizationRow,
  { context, key, grant, actor, identity, fault }: JudgedGrant,
): Promise<void> {
  const material = materialOf(grant, context.fields);
  const digestOfIdentity = identityDigest(identity.key);
  let externalUserId = "";
  const isSettled = await db.transaction().execute(async (transaction) => {
    const locked = await lockAuthorization(transaction, row);
    const state = locked?.state;
    // A pseudonym by now, where the user was erased meanwhile.
    externalUserId = locked?.externalUserId ?? row.externalUserId;
    // Of an earlier attempt, whose commit was not acknowledged: nobody else ends a claim well.
    if (state === "SUCCEEDED") return true;
    if (state !== "EXCHANGING") return false;
    const existing = await lockCredential(transaction, row);
    const refused = fault ?? judgeIdentity(existing?.identityDigest, identity);
    if (refused !== undefined) {
      await failAuthorization(transaction, row, refused);
      // Where a revocation ends all of a user's grants it would end the account's own, which lives on.
      const isOwn = existing !== undefined && existing.state !== "REVOKED" && refused !== "IDENTITY_MISMATCH";
      return isOwn && (await endsSiblings({ db: transaction, catalog }, row));
    }
    const facts = { ...factsOf(context.app, grant, row.scopes), identityDigest: digestOfIdentity };
    const action = "credential.connected";
    const ownApp = !catalog.has(row.appSlug);
    const isStored = await storeCredential(transaction, row, { key, material, facts, actor, action, ownApp });
    if (isStored) await succeedAuthorization(transaction, row, identity.name);
    else await failAuthorization(transaction, row, "ACCOUNT_REVOKED");
    return isStored;
  });
  if (isSettled || context.app.oauth2.revoke === undefined) return;
  // Not kept, or revoked while the user was at the provider: what was just granted must not live on there.
  const prepared = await prepareRevocation(
    secrets,
    { ...row, externalUserId, identityDigest: digestOfIdentity },
    { ...material, client: context.client },
  );
  await db.transaction().execute(async (transaction) => {
    // Held: who erases the user finds the record. Erased since: the attempt begins again.
    const locked = await lockAuthorization(transaction, row);
    if (locked !== undefined && locked.externalUserId !== externalUserId)
      throw new Error("the user was erased meanwhile");
    await insertRevocation(transaction, prepared);
  });
}
