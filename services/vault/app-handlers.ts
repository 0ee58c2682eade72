// The handlers of the projects' own apps. A definition is judged here again, whoever judged it before, and by the egress rules
// here alone: the vault sends to its endpoints, and knows which targets development exempts.
import { judgeDefinition } from "#libs/app-definition.ts";
import type { Catalog } from "#libs/catalog.ts";
import { invalidFields, StatusError } from "#libs/errors.ts";
import { ownAppFaults } from "#libs/own-app-rules.ts";
import type { Handlers } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { actorOf } from "./audit-entries.ts";
import { untilLeasesEnd } from "./lease-invalidations.ts";
import type { LeaseSignals } from "./lease-signals.ts";
import { destroyOwnApp, putOwnApp } from "./own-apps.ts";
import type { VaultDatabase } from "./schema.ts";

/** What the handlers of this file need. */
export interface AppHandlerOptions {
  readonly db: VaultDatabase;
  readonly catalog: Catalog;
  readonly signals: LeaseSignals;
  /** `host:port` of the development upstreams. */
  readonly exemptTargets: readonly string[];
}

/** The handlers over their collaborators. */
export function appHandlers(
  options: AppHandlerOptions,
): Pick<Handlers<typeof CredentialVaultDefinition>, "putApp" | "destroyApp"> {
  const { db, catalog, exemptTargets } = options;
  return {
    async putApp({ projectId, definition }, call) {
      const judged = judgeDefinition(definition);
      if (judged.kind === "faults") throw invalidFields(judged.faults);
      const { app } = judged;
      const faults = ownAppFaults(app, exemptTargets);
      if (faults.length > 0) throw invalidFields(faults);
      if (catalog.has(app.slug)) {
        throw new StatusError("ALREADY_EXISTS", "APP_ALREADY_EXISTS", "The catalog has an app with this slug.");
      }
      const accountIds = await putOwnApp(db, projectId, { app, definition, actor: actorOf(call) });
      await untilLeasesEnd(options, { projectId, accountIds });
      return {};
    },

    async destroyApp({ projectId, appSlug }, call) {
      const accountIds = await destroyOwnApp(db, { projectId, appSlug }, actorOf(call));
      await untilLeasesEnd(options, { projectId, accountIds });
      return {};
    },
  };
}
