// When a grant ends for good, as far as that is known beforehand, and from when on its user should be asked to connect again.
// See services/vault/grants.ts.
import { type Kysely, sql } from "kysely";

/** Run by migrations/migrate.ts, as the owner role. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table credentials
      -- When the user gave it, or it was stored; refreshes leave it.
      add column grant_time timestamptz not null default now(),
      add column grant_expire_time timestamptz,
      add column grant_notice_time timestamptz,
      add constraint grant_notice_has_an_end check ((grant_expire_time is null) = (grant_notice_time is null))`.execute(
    db,
  );
  // Of those that were connected again since, that is too early: their users are asked once too often rather than too late.
  await sql`update credentials set grant_time = create_time`.execute(db);
  await sql`drop trigger credentials_change on credentials`.execute(db);
  await sql`
    create trigger credentials_change before update on credentials for each row
    when ((old.state, old.state_reason, old.generation, old.failures, old.expire_time, old.last_refresh_time,
        old.next_refresh_time, old.grant_expire_time, old.grant_notice_time)
      is distinct from (new.state, new.state_reason, new.generation, new.failures, new.expire_time, new.last_refresh_time,
        new.next_refresh_time, new.grant_expire_time, new.grant_notice_time))
    execute function note_credential_change()`.execute(db);
}
