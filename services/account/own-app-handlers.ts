// CreateApp, UpdateApp and DeleteApp: apps that a project defines itself. The row here and the vault's copy change together: the
// vault is told within the transaction, last, so that what it refuses (it alone judges by the egress rules) is not kept here
// either, and of two changes of an app the second waits for the first. A crash between its answer and the commit leaves the
// vault one definition ahead; a repeat of the call mends that.
import { judgeDefinition } from "#libs/app-definition.ts";
import type { Catalog, CatalogApp } from "#libs/catalog.ts";
import { invalidField, invalidFields, StatusError } from "#libs/errors.ts";
import type { Call, CallOptions } from "#libs/rpc.ts";
import { countUnrevoked } from "./account-revocations.ts";
import { getNamedApp } from "./app-choice.ts";
import { deleteAppOverridesOf } from "./app-overrides.ts";
import { insertAuditEntries, type NewAuditEntry } from "./audit-entries.ts";
import { afterwards, briefly, type HandlerGroup, ownRight, type Vault } from "./handler-group.ts";
import { appMessage } from "./messages.ts";
import { deleteOauthAppsOf, listOauthAppIds } from "./oauth-apps.ts";
import {
  appExists,
  type CatalogOf,
  deleteOwnApp,
  insertOwnApp,
  type KnownApp,
  knownApp,
  lockOwnApp,
  updateOwnApp,
} from "./own-apps.ts";
import { holdProject } from "./projects.ts";
import type { AccountDatabase } from "./schema.ts";

interface Collaborators {
  readonly db: AccountDatabase;
  readonly vault: Pick<Vault, "putApp" | "destroyApp" | "destroyOauthClient">;
  /** The deployment's own files. */
  readonly catalog: Catalog;
  readonly catalogOf: CatalogOf;
  readonly revokeAllAccounts: HandlerGroup<"revokeAllAccounts">["revokeAllAccounts"];
}

const environments = [1, 2] as const;

export function ownAppHandlers(
  { db, vault, catalog, catalogOf, revokeAllAccounts }: Collaborators,
  now: () => number,
): HandlerGroup<"createApp" | "updateApp" | "deleteApp"> {
  /** The project's own app of this slug or id. */
  async function getOwnApp(projectId: string, slugOrId: string): Promise<KnownApp> {
    const app: KnownApp = getNamedApp(await catalogOf(projectId), slugOrId);
    if (app.projectOwned) return app;
    throw new StatusError(
      "FAILED_PRECONDITION",
      "APP_OF_CATALOG",
      "The app is not the project's own: it is in the catalog.",
    );
  }

  async function countAccounts(tx: AccountDatabase, projectId: string, appSlug: string): Promise<number> {
    const all = { projectId, externalUserId: "", appSlug };
    const counts = await Promise.all(environments.map((environment) => countUnrevoked(tx, { ...all, environment })));
    return counts.reduce((sum, count) => sum + count, 0);
  }

  async function revokeAccounts(projectId: string, appSlug: string, call: Call): Promise<void> {
    const target = { $case: "appSlug", value: appSlug } as const;
    for (const environment of environments) {
      for await (const _ of revokeAllAccounts(
        { projectId, environment, target, dryRun: false, includeRevoked: false },
        call,
      ));
    }
  }

  async function destroyClients(
    projectId: string,
    oauthAppIds: readonly string[],
    options: CallOptions,
  ): Promise<void> {
    for (const oauthAppId of oauthAppIds) await vault.destroyOauthClient({ projectId, oauthAppId }, options);
  }

  function note(tx: AccountDatabase, call: Call, entry: NewAuditEntry): Promise<void> {
    return insertAuditEntries(tx, call, new Date(now()), entry);
  }

  return {
    async createApp({ projectId, definition }, call) {
      const app = judged(definition);
      if (catalog.has(app.slug)) throw appExists("The catalog has an app with this slug.");
      const time = new Date(now());
      await db.transaction().execute(async (tx) => {
        await holdProject(tx, projectId);
        await insertOwnApp(tx, { projectId, slug: app.slug, definition, createTime: time, updateTime: time });
        await note(tx, call, { projectId, action: "CreateApp", resourceId: app.slug, after: app });
        await vault.putApp({ projectId, definition }, briefly(call));
      });
      return { app: appMessage({ ...app, projectOwned: true }) };
    },

    async updateApp({ projectId, appSlug, definition }, call) {
      const { slug } = await getOwnApp(projectId, appSlug);
      const app = judged(definition);
      if (app.slug !== slug) throw invalidField("definition.slug", "cannot change");
      await db.transaction().execute(async (tx) => {
        const before = knownApp(await lockOwnApp(tx, projectId, slug));
        const isSameKind = before?.auth === app.auth;
        const count = isSameKind ? 0 : await countAccounts(tx, projectId, slug);
        if (count > 0) throw inUse(count, "its `auth` cannot change");
        await updateOwnApp(tx, { projectId, slug, definition, updateTime: new Date(now()) });
        await note(tx, call, { projectId, action: "UpdateApp", resourceId: slug, ...told(before), after: app });
        await vault.putApp({ projectId, definition }, briefly(call));
      });
      return { app: appMessage({ ...app, projectOwned: true }) };
    },

    async deleteApp({ projectId, appSlug, revokeAccounts: isCascade }, call) {
      const { slug } = await getOwnApp(projectId, appSlug);
      if (isCascade) await revokeAccounts(projectId, slug, call);
      refuseInUse(await countAccounts(db, projectId, slug));
      // Before the rows that name them: a call that ends here is taken up by the same call.
      await destroyClients(projectId, await listOauthAppIds(db, projectId, slug), ownRight(call));
      const oauthAppIds = await db.transaction().execute(async (tx) => {
        const before = knownApp(await lockOwnApp(tx, projectId, slug));
        refuseInUse(await countAccounts(tx, projectId, slug));
        const ids = await listOauthAppIds(tx, projectId, slug);
        await deleteAppOverridesOf(tx, projectId, slug);
        await deleteOauthAppsOf(tx, projectId, slug);
        await deleteOwnApp(tx, projectId, slug);
        await note(tx, call, { projectId, action: "DeleteApp", resourceId: slug, ...told(before) });
        await vault.destroyApp({ projectId, appSlug: slug }, briefly(call));
        return ids;
      });
      // One that came meanwhile.
      await destroyClients(projectId, oauthAppIds, afterwards(call));
      return {};
    },
  };
}

function judged(definition: string): CatalogApp {
  const result = judgeDefinition(definition);
  if (result.kind === "faults") throw invalidFields(result.faults);
  return result.app;
}

function told(before: KnownApp | undefined): Pick<NewAuditEntry, "before"> {
  if (before === undefined) return {};
  const { projectOwned: _, ...app } = before;
  return { before: app };
}

function refuseInUse(count: number): void {
  if (count > 0) throw inUse(count, "revoke them, or ask for that with revoke_accounts");
}

function inUse(count: number, what: string): StatusError {
  const message = `The app has ${count} account${count === 1 ? "" : "s"}: ${what}.`;
  return new StatusError("FAILED_PRECONDITION", "APP_IN_USE", message, { metadata: { accounts: String(count) } });
}
