// The handlers of export and import. A record that is refused is an answer and not the end of the stream.
import { StatusError } from "#libs/errors.ts";
import type { Handlers } from "#libs/rpc.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { actorOf } from "./audit-entries.ts";
import { environmentName } from "./credential-messages.ts";
import { checkRecord } from "./credential-record.ts";
import { exportCredentials } from "./export.ts";
import { type ImportOptions, importCredential } from "./import.ts";
import { type ImportFormats, readRecord } from "./import-formats.ts";
import { readRecipient } from "./jwe.ts";

type TransferHandlers = Pick<Handlers<typeof CredentialVaultDefinition>, "exportCredentials" | "importCredentials">;

/** The handlers over their collaborators. */
export function transferHandlers(options: ImportOptions, formats: ImportFormats): TransferHandlers {
  return {
    async *exportCredentials({ recipientJwk, projectId, environment }, call) {
      const recipient = await readRecipient(recipientJwk, "recipient_jwk");
      const filter = {
        ...(projectId && { projectId }),
        ...(environment !== undefined &&
          environment !== Environment.UNSPECIFIED && { environment: environmentName(environment) }),
      };
      for await (const exported of exportCredentials(options, filter, { recipient, actor: actorOf(call) })) {
        yield { jwe: "", error: "", ...exported };
      }
    },

    async *importCredentials(requests, call) {
      for await (const { record, shadow } of requests) {
        try {
          const read = checkRecord(await readRecord(formats, record));
          await importCredential(options, read, { shadow, actor: actorOf(call) });
          yield { accountId: read.account_id, error: "" };
        } catch (error) {
          if (!(error instanceof StatusError) || error.code !== "INVALID_ARGUMENT") throw error;
          yield { accountId: "", error: error.message };
        }
      }
    },
  };
}
