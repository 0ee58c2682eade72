// Revoking where the provider knows no single grant: `revoke_effect: user_client` says that a revocation ends everything that
// one of the provider's users has granted to one OAuth client. Then the provider is told when the last account that lives on
// those grants, a sibling, is destroyed; the ones before it are DEFERRED, and nothing is kept of their tokens.
//
// A sibling is a credential that is not destroyed, of the same OAuth app, of the same user at the provider. That user is known
// by the digest of the name that the app's identity request gave. Where it is known for both accounts, it alone counts, over
// external users and environments: a person's two logins at a provider are two users. Where it is not (an imported grant, an
// identity request that failed), two accounts of one external user count as siblings: better a grant that lives on until the
// last of them than another account's killed. Of two external users nothing suggests that they are one person; were they
// counted too, the first user of a client would be revoked when its last one goes, that is never. A shadow counts: the
// grant is another system's.
//
// No lock is needed. A revocation is deferred by one statement that begins after the destruction was committed, in the call
// that destroyed and again in the job right before the provider is asked. Of two destructions the later commit comes before
// its own statement, and that sees both: it finds no sibling, and tells the provider. A sibling that is connected while the
// request is on its way is lost with it; it is found out at its next refresh.
//
// A deferred revocation is DONE when a call that began after it was confirmed for the same known user. When no sibling and no
// call is left and there was no such call, it is FAILED, and says that the user has to be told: a receipt claims nothing that
// is not known.
import { type RawBuilder, sql } from "kysely";
import type { Catalog, CatalogApp } from "#libs/catalog.ts";
import { digest } from "#libs/ids.ts";
import { auditedAccount, changeAudited, vaultItself } from "./audit-entries.ts";
import { type AppKey, type AppSource, findAnyApp, listUserClientSlugs } from "./own-apps.ts";
import type { VaultDatabase } from "./schema.ts";
import { wiped } from "./secrets.ts";

/** The provider's name for its user as it is kept; null when there is none. */
export function identityDigest(name: string): Buffer | null {
  return name === "" ? null : digest(name);
}

/** Whether a revocation at the app's provider ends all of its user's grants to the client. */
export function endsAllGrants({ lifecycle }: CatalogApp): boolean {
  return lifecycle.revoke_effect === "user_client";
}

/** The same of an app that is named; of one that is not there it is false. */
export async function endsSiblings(source: AppSource, key: AppKey): Promise<boolean> {
  const app = await findAnyApp(source, key);
  return app !== undefined && endsAllGrants(app);
}

/** Defers the pending revocations of accounts that have siblings, and wipes their tokens. */
export async function deferRevocations(
  db: VaultDatabase,
  catalog: Catalog,
  { projectId, accountIds }: { readonly projectId: string; readonly accountIds: readonly string[] },
): Promise<void> {
  const listed = [...catalog.values()].filter(endsAllGrants);
  const appSlugs = [...listed.map(({ slug }) => slug), ...(await listUserClientSlugs(db, projectId))];
  if (appSlugs.length === 0) return;
  const change = db
    .updateTable("revocations as one")
    .set({ ...wiped, state: "DEFERRED" })
    .where("projectId", "=", projectId)
    .where("accountId", "=", sql<string>`any(${accountIds})`)
    .where("appSlug", "=", sql<string>`any(${appSlugs})`)
    .where("state", "=", "PENDING")
    .where("revokeSharedGrant", "=", false)
    .where(hasSibling)
    .returning(auditedAccount);
  await changeAudited(db, change, { action: "credential.revocation_deferred", actor: vaultItself });
}

/** Ends the deferred revocations that wait for nothing any more: of one project, or of all. */
export async function settleDeferredRevocations(db: VaultDatabase, projectId?: string): Promise<void> {
  await sql`
    with settled as (
      update revocations one
      set state = case when ${isTold} then 'DONE' else 'FAILED' end,
        last_error = case when ${isTold} then '' else 'SHARED_GRANT_NOT_TOLD' end,
        complete_time = now()
      where state = 'DEFERRED' and project_id = coalesce(${projectId ?? null}, project_id)
        and (${isTold} or not (${hasSibling} or exists (
          select from revocations other
          where other.state = 'PENDING' and ${ofSameUser(sql`other`)})))
      returning project_id, environment, external_user_id, account_id, state, last_error
    )
    insert into audit_entries
      (action, service, reason, project_id, environment, external_user_id, account_id)
    select 'credential.revocation_' || lower(state), ${vaultItself.service}, last_error, project_id, environment,
      external_user_id, account_id
    from settled`.execute(db);
}

const hasSibling = sql<boolean>`exists (
  select from credentials other
  where other.state <> 'REVOKED' and other.account_id <> one.account_id and ${ofSameUser(sql`other`)})`;

const isTold = sql`exists (
  select from revocations other
  where other.project_id = one.project_id and other.oauth_app_id = one.oauth_app_id
    and other.identity_digest = one.identity_digest and other.told_time > one.create_time)`;

/** Whether another row may be of the same user at the provider as `one`. Written so that the indexes serve both ways. */
function ofSameUser(other: RawBuilder<unknown>): RawBuilder<unknown> {
  return sql`${other}.project_id = one.project_id
    and ${other}.oauth_app_id = one.oauth_app_id and ${other}.oauth_app_id <> ''
    and (${other}.identity_digest = one.identity_digest
      or (${other}.external_user_id = one.external_user_id
        and (${other}.identity_digest is null or one.identity_digest is null)))`;
}
