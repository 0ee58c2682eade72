// Has postings signed by the vault. Those to a connect token's address are signed by the key of the environment's webhook, which
// is the one that their receiver can know; without a webhook they go unsigned, as their receivers are used to.
import type { Client } from "#libs/rpc.ts";
import type { Environment } from "#proto/deputy/account/v1/environment.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import type { Sign } from "./deliver-events.ts";
import type { AccountDatabase } from "./schema.ts";
import { findWebhook } from "./webhook-endpoints.ts";

const signTimeoutMs = 5_000;

/** Signs by the vault. */
export function vaultSigner(
  db: AccountDatabase,
  vault: Pick<Client<typeof CredentialVaultDefinition>, "signWebhook">,
): Sign {
  return async ({ projectId, environment }, { id: messageId, timestamp, body }) => {
    const webhookId = (await findWebhook(db, { projectId, environment }))?.id;
    if (webhookId === undefined) return undefined;
    const message = { messageId, timestamp: BigInt(timestamp), body };
    const request = { projectId, environment: environment as Environment, webhookId, ...message };
    return (await vault.signWebhook(request, { deadlineMs: Date.now() + signTimeoutMs })).signature;
  };
}
