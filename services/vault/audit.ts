// The audit of one process: what writes entries and what seals them, over connections of their own, so that a busy vault does
// not look like an audit that hangs.
import type { PoolOptions } from "#libs/database.ts";
import type { Logger } from "#libs/log.ts";
import type { SigningKey } from "#libs/signing-key.ts";
import { startAuditSealer } from "./audit-sealer.ts";
import { type AuditWriter, startAuditWriter } from "./audit-writer.ts";
import { openVaultDatabase } from "./schema.ts";

/** Starts both. `stop` writes and seals what is left; nothing can be noted afterwards. */
export function startAudit(options: {
  readonly database: Omit<PoolOptions, "maxConnections">;
  readonly signingKey: SigningKey;
  readonly log: Logger;
}): AuditWriter {
  const { database, signingKey, log } = options;
  // One for each of the two, who take turns with nobody.
  const db = openVaultDatabase({ ...database, maxConnections: 2 });
  const writer = startAuditWriter({ db, log });
  const sealer = startAuditSealer({ db, signingKey, log });
  return {
    ...writer,
    async stop() {
      await writer.stop();
      await sealer.stop();
      await db.destroy();
    },
  };
}
