// The breaker of an OAuth client: when its provider refuses the client itself, every account of it would be refused, and none
// of them is at fault. So nothing is sent any more but one refresh at a time as a probe, with growing pauses, over all vault
// processes; the first answer that is about a grant closes the breaker, and the accounts that waited come back spread out.
import { sql } from "kysely";
import type { VaultDatabase } from "./schema.ts";

interface ClientKey {
  readonly projectId: string;
  readonly oauthAppId: string;
}

/** Whether a refresh may be sent with a client. */
export type Admission =
  /** The breaker is closed. */
  | { readonly kind: "open_road" }
  /** It is open, and this refresh is the probe. */
  | { readonly kind: "probe" }
  | { readonly kind: "refused"; readonly waitSeconds: number };

const backoff = { firstSeconds: 5, mostSeconds: 15 * 60 };
// Longer than a token request: a probe whose process is gone is followed by another.
const probeSeconds = 30;
// Over so long the accounts that waited are spread once the client is taken again.
const returnSeconds = 30;

/** Asks for a client whose breaker may be open; `probeTime` is what its row said. */
export async function admitRefresh(db: VaultDatabase, key: ClientKey, probeTime: Date | null): Promise<Admission> {
  if (probeTime === null) return { kind: "open_road" };
  const probe = await ofClient(db, key)
    .set({ probeTime: sql<Date>`clock_timestamp() + make_interval(secs => ${probeSeconds})` })
    .where("probeTime", "<=", sql<Date>`clock_timestamp()`)
    .executeTakeFirst();
  if (probe.numUpdatedRows === 1n) return { kind: "probe" };
  const row = await db
    .selectFrom("oauthClients")
    .select(sql<number>`extract(epoch from probe_time - clock_timestamp())::float8`.as("waitSeconds"))
    .where("projectId", "=", key.projectId)
    .where("oauthAppId", "=", key.oauthAppId)
    .where("probeTime", "is not", null)
    .executeTakeFirst();
  return row === undefined ? { kind: "open_road" } : { kind: "refused", waitSeconds: Math.max(0, row.waitSeconds) };
}

/** Opens the breaker, or keeps it open for longer after a probe. False when another has just opened it. */
export async function openBreaker(db: VaultDatabase, key: ClientKey, isProbe: boolean): Promise<boolean> {
  const seconds = sql<number>`least(${backoff.firstSeconds} * power(2, least(rejections, 10)), ${backoff.mostSeconds})`;
  const { numUpdatedRows } = await ofClient(db, key)
    .set({
      rejections: sql<number>`rejections + 1`,
      probeTime: sql<Date>`clock_timestamp() + make_interval(secs => ${seconds} * ${0.8 + 0.4 * Math.random()})`,
    })
    .where("destroyTime", "is", null)
    .$if(!isProbe, (query) => query.where("probeTime", "is", null))
    .executeTakeFirst();
  return numUpdatedRows === 1n;
}

/** Closes the breaker: the provider takes the client again. */
export async function closeBreaker(db: VaultDatabase, key: ClientKey): Promise<void> {
  await ofClient(db, key).set({ rejections: 0, probeTime: null }).execute();
  await releaseWaiting(db, key);
}

/** Lets the accounts that waited for their client be refreshed again, not all at once. */
export async function releaseWaiting(db: VaultDatabase, { projectId, oauthAppId }: ClientKey): Promise<void> {
  // Rows that somebody holds at this moment come back by themselves, at the latest after their own pause.
  await sql`
    update credentials as c
    set retry_time = null, next_refresh_time = clock_timestamp() + random() * make_interval(secs => ${returnSeconds})
    from (
      select account_id from credentials
      where project_id = ${projectId} and oauth_app_id = ${oauthAppId}
        and state_reason = 'OAUTH_CLIENT_REJECTED' and state in ('ACTIVE', 'UNKNOWN')
      for update skip locked
    ) as waiting
    where c.project_id = ${projectId} and c.account_id = waiting.account_id`.execute(db);
}

function ofClient(db: VaultDatabase, { projectId, oauthAppId }: ClientKey) {
  return db.updateTable("oauthClients").where("projectId", "=", projectId).where("oauthAppId", "=", oauthAppId);
}
