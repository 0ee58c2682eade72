// Accounts of the refresh loop's benchmark: rows whose tokens are truly sealed, with an OAuth client for each app.
import { setTimeout as sleep } from "node:timers/promises";
import { sql } from "kysely";
import { vaultItself } from "../services/vault/audit-entries.ts";
import { credentialOwner } from "../services/vault/credentials.ts";
import { dataKeys } from "../services/vault/data-keys.ts";
import { fileKeyring } from "../services/vault/keyring.ts";
import { putOauthClient } from "../services/vault/oauth-client-changes.ts";
import { openVaultDatabase } from "../services/vault/schema.ts";
import { sealWith, secretsOver } from "../services/vault/secrets.ts";
import type { LoopStand } from "./loop-stand.ts";

const projectId = "proj_bench";
const rowsPerInsert = 250;

/** Opens the vaults' database for the benchmark. */
export function sealedAccounts(stand: LoopStand) {
  const db = openVaultDatabase({ ...stand.access(stand.database), maxConnections: 2 });
  const provider = fileKeyring({ path: stand.keyringFile });
  const secrets = secretsOver(dataKeys({ provider, now: () => performance.now() }), () => undefined);

  async function sealedRow(appSlug: string, index: number) {
    const accountId = `apn_${appSlug}_${index}`;
    const whose = {
      projectId,
      environment: "development" as const,
      externalUserId: `user_${index}`,
      accountId,
      appSlug,
    };
    const owner = credentialOwner(whose);
    // As long as a provider's are.
    const material = { accessToken: `at-${accountId}`.padEnd(900, "."), refreshToken: `rt-${accountId}`, fields: {} };
    const sealed = sealWith(await secrets.prepare(owner), owner, 1n, material);
    const times = { expireTime: sql<Date>`now() + interval '1 hour'`, nextRefreshTime: null };
    return {
      ...whose,
      ...sealed,
      ...times,
      oauthAppId: `oa_${appSlug}`,
      state: "ACTIVE" as const,
      stateReason: "",
      scopes: [],
      generation: 1n,
    };
  }

  return {
    db,
    /** Adds so many accounts of an app, of which none is due; they are numbered from 0. */
    async add(appSlug: string, count: number): Promise<void> {
      const client = { projectId, oauthAppId: `oa_${appSlug}`, appSlug, clientId: "bench", secrets: ["any"] };
      await putOauthClient({ db, secrets }, client, vaultItself);
      for (let first = 0; first < count; first += rowsPerInsert) {
        const length = Math.min(rowsPerInsert, count - first);
        const rows = await Promise.all(Array.from({ length }, (_, index) => sealedRow(appSlug, first + index)));
        await db.insertInto("credentials").values(rows).execute();
      }
      // As the autovacuum would, in its time.
      await sql`analyze credentials`.execute(db);
    },
    /**
     * Lets the accounts of an app be due in so many seconds, each so many milliseconds after the one before it, and their
     * tokens end as long after that. Gives the time at which the first one is due, in milliseconds.
     */
    async makeDue(appSlug: string, { inSeconds = 0, everyMs = 0, endsInSeconds = 300 } = {}): Promise<number> {
      const { rows } = await sql<{
        startTime: Date;
      }>`select now() + make_interval(secs => ${inSeconds}) as start_time`.execute(db);
      const startTime = rows[0]?.startTime ?? new Date();
      await sql`
        update credentials set next_refresh_time = due, expire_time = due + make_interval(secs => ${endsInSeconds})
        from (select account_id as id, ${startTime}::timestamptz + number * make_interval(secs => ${everyMs / 1000}::float8) as due
          from credentials, lateral (select substring(account_id from '[0-9]+$')::int as number) as numbered
          where app_slug = ${appSlug}) as times
        where account_id = times.id and project_id = ${projectId}`.execute(db);
      return startTime.getTime();
    },
    /** Takes apps' accounts out of the loops' sight, those too that are under way and get a new time at their end. */
    async rest(...appSlugs: readonly string[]): Promise<void> {
      for (let untouched = 0; untouched < 3; ) {
        const { numUpdatedRows } = await db
          .updateTable("credentials")
          .set({ nextRefreshTime: null })
          .where("appSlug", "in", appSlugs)
          .where("nextRefreshTime", "is not", null)
          .executeTakeFirst();
        untouched = numUpdatedRows === 0n ? untouched + 1 : 0;
        await sleep(300);
      }
    },
    /** When each account of an app was refreshed last, in milliseconds by its number; of those at the generation. */
    async refreshTimes(appSlug: string, generation: bigint): Promise<ReadonlyMap<number, number>> {
      const rows = await db
        .selectFrom("credentials")
        .select(["accountId", "lastRefreshTime"])
        .where("appSlug", "=", appSlug)
        .where("generation", "=", generation)
        .execute();
      return new Map(
        rows.map(({ accountId, lastRefreshTime }) => [
          Number(/\d+$/.exec(accountId)?.[0]),
          lastRefreshTime?.getTime() ?? Number.NaN,
        ]),
      );
    },
    close: () => db.destroy(),
  };
}

/** Those accounts. */
export type SealedAccounts = ReturnType<typeof sealedAccounts>;
