// The handlers of webhook keys: make one, sign with it, destroy it.
import type { Handlers } from "#libs/rpc.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { SignWebhookRequest } from "#proto/deputy/vault/v1/webhook_keys.ts";
import { actorOf } from "./audit-entries.ts";
import { environmentName } from "./credential-messages.ts";
import type { VaultDatabase } from "./schema.ts";
import type { Secrets } from "./secrets.ts";
import { createWebhookKey, destroyWebhookKey, signWebhook, type WebhookKeyName } from "./webhook-keys.ts";

type WebhookKeyHandlers = Pick<
  Handlers<typeof CredentialVaultDefinition>,
  "createWebhookKey" | "signWebhook" | "destroyWebhookKey"
>;

/** The handlers over their collaborators. */
export function webhookKeyHandlers(options: {
  readonly db: VaultDatabase;
  readonly secrets: Secrets;
}): WebhookKeyHandlers {
  return {
    async createWebhookKey(request, call) {
      const by = { actor: actorOf(call), nowMs: Date.now() };
      return { signingKey: await createWebhookKey(options, nameOf(request), by) };
    },

    async signWebhook(request) {
      const { messageId: id, timestamp, body } = request;
      return { signature: await signWebhook(options, nameOf(request), { id, timestamp, body, nowMs: Date.now() }) };
    },

    async destroyWebhookKey(request, call) {
      await destroyWebhookKey(options.db, nameOf(request), actorOf(call));
      return {};
    },
  };
}

function nameOf(request: Pick<SignWebhookRequest, "projectId" | "environment" | "webhookId">): WebhookKeyName {
  const { projectId, environment, webhookId } = request;
  return { projectId, environment: environmentName(environment), webhookId };
}
