// The handlers of export and import. A record that is refused is an answer and not the end of the stream.
import { StatusError } from "#libs/errors.ts";
import type { Handlers } from "#libs/rpc.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import type { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
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
    async *exportCredentials({ recipientJwk, projectId, environment }) {
      const recipient = await readRecipient(recipientJwk, "recipient_jwk");
      const filter = {
        ...(projectId && { projectId }),
        ...(environment !== undefined &&
          environment !== Environment.UNSPECIFIED && { environment: environmentName(environment) }),
      };
      for await (const exported of exportCredentials(options, filter, recipient)) {
        yield { jwe: "", error: "", ...exported };
      }
    },

    async *importCredentials(requests) {
      for await (const { record, shadow } of requests) {
        try {
          const read = checkRecord(await readRecord(formats, record));
          await importCredential(options, read, shadow);
          yield { accountId: read.account_id, error: "" };
        } catch (error) {
          if (!(error instanceof StatusError) || error.code !== "INVALID_ARGUMENT") throw error;
          yield { accountId: "", error: error.message };
        }
      }
    },
  };
}
