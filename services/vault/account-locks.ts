// Locks on accounts over all vault processes: session advisory locks of Postgres on one connection of their own. A process
// that dies loses its connection and with it its locks, at once and without a clean-up. A lock keeps two processes from
// trying at the same time; it decides nothing about what is stored (see refresh.ts).
import { type Connection, type DatabaseOptions, openConnection } from "#libs/database.ts";
import { StatusError } from "#libs/errors.ts";
import type { CredentialKey } from "./credentials.ts";

/** Locks of this process. */
export interface AccountLocks {
  /** Takes the account's lock; gives what releases it, or undefined when another process has it. */
  tryLock(key: CredentialKey): Promise<(() => Promise<void>) | undefined>;
  end(): Promise<void>;
}

const lockStatement = "select pg_try_advisory_lock(hashtextextended($1, 0)) as locked";
const unlockStatement = "select pg_advisory_unlock(hashtextextended($1, 0))";

/** The connection is opened at first use, and again after a loss: what was locked then is free for others. */
export function accountLocks(database: DatabaseOptions): AccountLocks {
  let current: Promise<Connection> | undefined;
  let last: Promise<unknown> = Promise.resolve();

  function connection(): Promise<Connection> {
    if (current !== undefined) return current;
    const opening = openConnection(database);
    const forget = () => {
      if (current === opening) current = undefined;
    };
    opening.then((opened) => opened.onLost(forget), forget);
    current = opening;
    return opening;
  }

  /** Runs a statement after those before it: a connection takes one at a time. */
  function query(held: Promise<Connection>, sql: string, parameters: readonly string[]) {
    const answer = last.then(() => queryNow(held, sql, parameters));
    last = answer.catch(() => undefined);
    return answer;
  }

  /** A connection that broke a moment ago, and has not said so yet, is given up for a new one. */
  async function queryNow(held: Promise<Connection>, sql: string, parameters: readonly string[]) {
    try {
      return await (await held).query<{ locked: boolean }>(sql, parameters);
    } catch (error) {
      if (current === held) current = undefined;
      held.then((broken) => broken.end()).catch(() => undefined);
      throw error;
    }
  }

  return {
    async tryLock({ projectId, accountId }) {
      const parameters = [`cred:${projectId}:${accountId}`];
      const lock = async () => {
        const held = connection();
        return { held, rows: await query(held, lockStatement, parameters) };
      };
      const { held, rows } = await lock().catch(lock).catch(throwUnavailable);
      if (rows[0]?.locked !== true) return undefined;
      // When the connection is gone the lock is too.
      return async () => void (await query(held, unlockStatement, parameters).catch(() => undefined));
    },
    async end() {
      await (await current?.catch(() => undefined))?.end();
    },
  };
}

/** A connection that fails twice says nothing of the account. */
function throwUnavailable(cause: unknown): never {
  throw new StatusError("UNAVAILABLE", "DATABASE_UNAVAILABLE", "The database cannot be reached: call again.", {
    cause,
  });
}
