// The only door to Postgres: pooled queries through Kysely, and single connections for what belongs to a session
// (advisory locks, LISTEN). Statements with parameters are prepared under a name made from their text, which spares
// Postgres the parsing and planning of each repeat: measured 0.77 of a raw named statement's rate against 0.45 without.
import { createHash } from "node:crypto";
import { CamelCasePlugin, Kysely, PostgresDialect, type PostgresPoolClient } from "kysely";
import pg from "pg";
import { StatusError } from "./errors.ts";
import { reveal, type Secret } from "./secret.ts";

/** Where a database is and how it is used. */
export interface DatabaseOptions {
  /** `postgres://user@host:5432/database?sslmode=verify-full`, or `postgres://user@localhost/database?host=/socket/directory`. */
  readonly url: string;
  /** Kept apart from the URL, so that the URL can be printed. What lives as long as its process is a Secret. */
  readonly password?: string | Secret;
  /** Shown in pg_stat_activity. */
  readonly applicationName: string;
  /** A statement, a wait for a lock, or a pause inside a transaction that takes longer is ended by Postgres. 0: no limit. */
  readonly statementTimeoutMs: number;
}

/** What a pool of connections needs beside. */
export interface PoolOptions extends DatabaseOptions {
  readonly maxConnections: number;
  /** Told when a connection breaks while nobody uses it; the pool replaces it. For a log line. */
  readonly onIdleError?: (error: Error) => void;
}

/** One connection of its own. */
export interface Connection {
  /** Runs one statement with parameters, or several without. */
  readonly query: <Row extends object>(sql: string, parameters?: readonly unknown[]) => Promise<readonly Row[]>;
  /** Calls the listener with every notification of the channels that were listened to. */
  readonly onNotification: (listener: (channel: string, payload: string) => void) => void;
  /** Calls the listener once when the connection is lost, and with it all its locks; not after `end`. */
  readonly onLost: (listener: () => void) => void;
  readonly end: () => Promise<void>;
}

// A new connection takes milliseconds; a wait this long means that the pool is exhausted or the server gone.
const connectTimeoutMs = 5_000;

// Each connection keeps its prepared statements in memory, so statements without end (lists of varying length) must not
// all get a name. A service has well under a hundred.
const maxNamedStatements = 500;

/**
 * Opens a database for queries. Names are snake_case in Postgres and camelCase here, but inside of JSON; columns of type int8 are bigint. End it
 * by `destroy()`.
 */
export function openDatabase<Tables>(options: PoolOptions): Kysely<Tables> {
  const pool = createPool(options, { types: { getTypeParser } });
  const nameStatement = statementNames();
  const clients = new WeakMap<pg.PoolClient, PostgresPoolClient>();
  const dialect = new PostgresDialect({
    pool: {
      // Kysely knows a connection again by the identity of its client.
      connect: async () => {
        const client = await pool.connect().catch((error) => {
          throw faultOf(error);
        });
        const known = clients.get(client) ?? namedClient(client, nameStatement);
        clients.set(client, known);
        return known;
      },
      end: () => pool.end(),
      options: pool.options,
    },
    controlClient: pg.Client,
  });
  // The keys inside of JSON are data, and stay as they were written.
  return new Kysely<Tables>({ dialect, plugins: [new CamelCasePlugin({ maintainNestedObjectKeys: true })] });
}

/** Opens a plain pool, for libraries that bring their own statements. int8 is text, as pg has it. */
export function openPool(options: PoolOptions): pg.Pool {
  return createPool(options, {});
}

/** Opens one connection for session locks and notifications. */
export async function openConnection(options: DatabaseOptions): Promise<Connection> {
  const client = new pg.Client({ ...connectionConfig(options), types: { getTypeParser } });
  let ended = false;
  let closing = false;
  // One statement after the other: the client's own queue is going away.
  let turn: Promise<unknown> = Promise.resolve();
  // Without a listener the loss of a connection would end the process; `end` follows every loss and is what we act on.
  client.on("error", () => {});
  client.on("end", () => {
    ended = true;
  });
  await client.connect().catch((error) => {
    // A refused connection to a name with several addresses has no message, only a code.
    throw new Error(`No connection to the database: ${error.message || error.code}`, { cause: error });
  });
  return {
    query: async <Row extends object>(sql: string, parameters?: readonly unknown[]) => {
      const answer = turn.then(() => client.query<Row>(sql, parameters && [...parameters]));
      turn = answer.catch(() => undefined);
      return (await answer).rows;
    },
    onNotification: (listener) => {
      client.on("notification", ({ channel, payload }) => listener(channel, payload ?? ""));
    },
    onLost: (listener) => {
      const tell = () => {
        if (!closing) listener();
      };
      if (ended) queueMicrotask(tell);
      else client.once("end", tell);
    },
    end: async () => {
      closing = true;
      if (!ended) await client.end();
    },
  };
}

/** Whether the error is Postgres refusing a second row with the same key, of the named constraint where one is given. */
export function isUniqueViolation(error: unknown, constraint?: string): boolean {
  return (
    error instanceof pg.DatabaseError &&
    error.code === "23505" &&
    (constraint === undefined || error.constraint === constraint)
  );
}

/** What a caller may be told of a failure: an outage is worth a repeat, a text that Postgres cannot hold is not. */
function faultOf(error: unknown): unknown {
  if (isOutage(error)) {
    return new StatusError("UNAVAILABLE", "DATABASE_UNAVAILABLE", "The database cannot be reached: call again.", {
      cause: error,
    });
  }
  // A deadlock, a serialization failure, a lock that could not be had: Postgres has undone all of the transaction.
  if (error instanceof pg.DatabaseError && /^(40P01|40001|55P03)$/.test(error.code ?? "")) {
    const message = "Somebody else was changing the same: nothing was done, call again.";
    return new StatusError("ABORTED", "CONCURRENT_CHANGE", message, { cause: error });
  }
  // The only characters that JavaScript can send and Postgres cannot hold are those of code zero: in a text, or in JSON.
  if (error instanceof pg.DatabaseError && /^(22021|22P05)$/.test(error.code ?? "")) {
    return new StatusError("INVALID_ARGUMENT", "INVALID_FIELD", "A text has a character of code zero.", {
      cause: error,
    });
  }
  return error;
}

function isOutage(error: unknown): boolean {
  // Classes 08 (connection), 53 (out of connections, memory or disk) and 57P (shutting down, starting up).
  if (error instanceof pg.DatabaseError) return /^(08|53|57P)/.test(error.code ?? "");
  if (!(error instanceof Error)) return false;
  // Of the system: ECONNREFUSED, ENOENT of a socket, EAI_AGAIN of a name. ERR_ are Node's own, for wrong arguments.
  const { code } = error as NodeJS.ErrnoException;
  if (code !== undefined) return /^E(?!RR_)/.test(code);
  // pg has no codes for the loss of a connection and for an exhausted pool.
  return /^(Connection terminated|Client has encountered a connection error|timeout exceeded when trying)/.test(
    error.message,
  );
}

function createPool(options: PoolOptions, config: pg.PoolConfig): pg.Pool {
  const pool = new pg.Pool({ ...connectionConfig(options), ...config, max: options.maxConnections });
  pool.on("error", (error) => options.onIdleError?.(error));
  // The pool listens only while a connection is idle; one that breaks inside a transaction, between two statements,
  // would end the process. Its next statement fails, which tells whoever uses it.
  pool.on("connect", (client) => client.on("error", () => {}));
  return pool;
}

function connectionConfig({ url, password, applicationName, statementTimeoutMs }: DatabaseOptions): pg.ClientConfig {
  return {
    connectionString: password === undefined ? url : withPassword(url, password),
    application_name: applicationName,
    statement_timeout: statementTimeoutMs,
    // A transaction left open keeps dead rows from being cleaned up, which slows the claiming of due work tenfold.
    idle_in_transaction_session_timeout: statementTimeoutMs,
    connectionTimeoutMillis: connectTimeoutMs,
    keepAlive: true,
  };
}

// pg prefers an empty password of the URL to the one beside it, so it has to go into the URL.
function withPassword(url: string, password: string | Secret): string {
  const parsed = URL.parse(url.replace("@/", "@localhost/"));
  // The text is not repeated: somebody may have put a password into it.
  if (parsed?.protocol !== "postgres:" && parsed?.protocol !== "postgresql:") {
    throw new Error("url: is not a database URL like postgres://user@host:5432/database");
  }
  parsed.password = encodeURIComponent(reveal(password));
  return parsed.href;
}

function getTypeParser(oid: number, format?: "text" | "binary") {
  return oid === pg.types.builtins.INT8 && format !== "binary" ? BigInt : pg.types.getTypeParser(oid, format);
}

interface StatementNames {
  readonly nameOf: (sql: string) => string | undefined;
  readonly unname: (sql: string) => void;
}

function statementNames(): StatementNames {
  const names = new Map<string, string | undefined>();
  return {
    nameOf: (sql) => {
      if (names.has(sql) || names.size >= maxNamedStatements) return names.get(sql);
      // 144 bits; Postgres cuts names at 63 characters.
      const name = createHash("sha256").update(sql).digest("base64url").slice(0, 24);
      names.set(sql, name);
      return name;
    },
    unname: (sql) => names.set(sql, undefined),
  };
}

function namedClient(client: pg.PoolClient, names: StatementNames): PostgresPoolClient {
  const query = async <Row extends pg.QueryResultRow>(sql: string, parameters: readonly unknown[]) => {
    // begin, commit and schema changes have no parameters and gain nothing.
    const name = parameters.length > 0 ? names.nameOf(sql) : undefined;
    const values = [...parameters];
    try {
      return await client.query<Row>(name === undefined ? { text: sql, values } : { name, text: sql, values });
    } catch (error) {
      // A migration changed a column that the statement returns ("cached plan must not change result type"): this run
      // fails, as its transaction may be lost already; the next one plans afresh.
      if (error instanceof pg.DatabaseError && error.code === "0A000") names.unname(sql);
      throw faultOf(error);
    }
  };
  // The cast: the interface has a second signature, for cursors, which no dialect of ours opens.
  return {
    query: query as unknown as PostgresPoolClient["query"],
    release: (discard) => client.release(discard),
  };
}
