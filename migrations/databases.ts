// Makes the two databases and their roles; run as the superuser, as often as one likes. Each database has an owner role,
// which only migrations use, and a runtime role, which reads and writes rows but cannot create or change anything. No
// role can connect to the other database. Connecting to `postgres` and `template1` is taken from PUBLIC too: this server
// is meant for Deputy alone.
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import { readConfig } from "#libs/config.ts";
import { type Connection, openConnection } from "#libs/database.ts";

/** The databases by short name: `deputy_account` belongs to the account service, `deputy_vault` to the vault. */
export type DatabaseName = "account" | "vault";

/** Passwords of a database's two roles. */
export interface RolePasswords {
  readonly owner: string;
  readonly runtime: string;
}

/** What `provisionDatabases` needs. */
export interface ProvisionOptions {
  /** A database of the server, as superuser. */
  readonly url: string;
  readonly password: string;
  readonly roles: Readonly<Record<DatabaseName, RolePasswords>>;
}

/** Names of a database and its roles. */
export function databaseRoles(name: DatabaseName): { database: string; owner: string; runtime: string } {
  return { database: `deputy_${name}`, owner: `deputy_${name}_owner`, runtime: `deputy_${name}` };
}

/** Makes what is missing and sets the rest: databases, roles, passwords, grants. Safe from several processes at once. */
export async function provisionDatabases({ url, password, roles }: ProvisionOptions): Promise<void> {
  const admin = await openConnection({
    url,
    password,
    applicationName: "deputy-databases",
    statementTimeoutMs: 60_000,
  });
  try {
    // Held until this connection ends; the number is ours alone ("depu").
    await admin.query("select pg_advisory_lock(x'64657075'::int)");
    await admin.query("revoke connect on database postgres, template1 from public");
    for (const name of ["account", "vault"] as const) {
      const { database, owner, runtime } = databaseRoles(name);
      await setRole(admin, owner, roles[name].owner);
      await setRole(admin, runtime, roles[name].runtime);
      const found = await admin.query("select from pg_database where datname = $1", [database]);
      // From template0: whatever somebody put into template1 stays out.
      if (found.length === 0) await admin.query(`create database ${database} owner ${owner} template template0`);
      await restrictDatabase(admin, database, name);
      await grantSchema({ url, password, name });
    }
  } finally {
    await admin.end();
  }
}

/** Lets only the two roles connect. Belongs to the database, not to its content: a copy from a template needs it again. */
export async function restrictDatabase(admin: Connection, database: string, name: DatabaseName): Promise<void> {
  const { owner, runtime } = databaseRoles(name);
  await admin.query(`revoke all on database ${database} from public; grant connect on database ${database} to ${runtime};
    alter database ${database} owner to ${owner}`);
}

async function grantSchema(options: { url: string; password: string; name: DatabaseName }): Promise<void> {
  const { database, owner, runtime } = databaseRoles(options.name);
  const connection = await openConnection({
    url: atDatabase(options.url, database),
    password: options.password,
    applicationName: "deputy-databases",
    statementTimeoutMs: 60_000,
  });
  try {
    // What the owner makes later, the runtime role may use; a migration takes back what a table needs less of.
    const defaults = `alter default privileges for role ${owner} in schema public grant`;
    await connection.query(`alter schema public owner to ${owner}; revoke all on schema public from public;
      grant usage on schema public to ${runtime};
      ${defaults} select, insert, update, delete on tables to ${runtime};
      ${defaults} usage on sequences to ${runtime}`);
  } finally {
    await connection.end();
  }
}

/** The same server, another database. */
export function atDatabase(url: string, database: string): string {
  const changed = new URL(url.replace("@/", "@localhost/"));
  changed.pathname = `/${database}`;
  return changed.href;
}

async function setRole(admin: Connection, role: string, password: string): Promise<void> {
  if (!/^[\x21-\x7e]{16,200}$/.test(password)) {
    throw new Error(`password of ${role}: must be 16 to 200 printable ASCII characters without spaces`);
  }
  const found = await admin.query("select from pg_roles where rolname = $1", [role]);
  if (found.length === 0) await admin.query(`create role ${role}`);
  await admin.query(`alter role ${role} login password '${scramVerifier(password)}'`);
}

// The form in which Postgres stores a password (RFC 5803). Sent in this form, the password itself can never stand in the
// server's log or its statistics of statements.
function scramVerifier(password: string): string {
  const iterations = 4096;
  const salt = randomBytes(16);
  const salted = pbkdf2Sync(password, salt, iterations, 32, "sha256");
  const key = (label: string) => createHmac("sha256", salted).update(label).digest();
  const stored = createHash("sha256").update(key("Client Key")).digest("base64");
  return `SCRAM-SHA-256$${iterations}:${salt.toString("base64")}$${stored}:${key("Server Key").toString("base64")}`;
}

if (import.meta.main) {
  const config = readConfig({
    DEPUTY_DATABASE_ADMIN_URL: {
      kind: "url",
      help: "A database of the server, as superuser: postgres://user@host/db.",
    },
    DEPUTY_DATABASE_ADMIN_PASSWORD_FILE: { kind: "secret", help: "The superuser's password." },
    DEPUTY_ACCOUNT_OWNER_PASSWORD_FILE: { kind: "secret", help: "Password for the role deputy_account_owner." },
    DEPUTY_ACCOUNT_DATABASE_PASSWORD_FILE: { kind: "secret", help: "Password for the role deputy_account." },
    DEPUTY_VAULT_OWNER_PASSWORD_FILE: { kind: "secret", help: "Password for the role deputy_vault_owner." },
    DEPUTY_VAULT_DATABASE_PASSWORD_FILE: { kind: "secret", help: "Password for the role deputy_vault." },
  });
  try {
    await provisionDatabases({
      url: config.DEPUTY_DATABASE_ADMIN_URL,
      password: config.DEPUTY_DATABASE_ADMIN_PASSWORD_FILE.reveal(),
      roles: {
        account: {
          owner: config.DEPUTY_ACCOUNT_OWNER_PASSWORD_FILE.reveal(),
          runtime: config.DEPUTY_ACCOUNT_DATABASE_PASSWORD_FILE.reveal(),
        },
        vault: {
          owner: config.DEPUTY_VAULT_OWNER_PASSWORD_FILE.reveal(),
          runtime: config.DEPUTY_VAULT_DATABASE_PASSWORD_FILE.reveal(),
        },
      },
    });
    console.log("deputy_account and deputy_vault are ready, each with its owner and its runtime role.");
  } catch (error) {
    console.error(`The databases could not be made: ${(error as Error).message}`);
    process.exitCode = 1;
  }
}
