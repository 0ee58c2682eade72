// The database lib against a true Postgres: named statements, types, lost connections, session locks, notifications.
import { sql } from "kysely";
import { afterAll, beforeAll, expect, test } from "vitest";
import { isUniqueViolation, openConnection, openDatabase } from "#libs/database.ts";
import { StatusError } from "#libs/errors.ts";
import { createTestDatabase } from "../support/postgres.ts";

interface Tables {
  note: { id: bigint; body: string };
}

const database = await createTestDatabase("account");
const options = { applicationName: "database-test", statementTimeoutMs: 2_000 };
const idleErrors: Error[] = [];
const onIdleError = (error: Error) => idleErrors.push(error);
const db = openDatabase<Tables>({ ...database.owner, ...options, maxConnections: 1, onIdleError });
const admin = await openConnection({ ...database.superuser, ...options });

beforeAll(async () => {
  await sql`create table note (id int8 constraint note_key primary key, body text not null)`.execute(db);
});
afterAll(async () => {
  await db.destroy();
  await admin.end();
});

const backendOf = async (query: typeof db) =>
  (await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(query)).rows[0]?.pid;
const prepared = async () =>
  (await sql<{ count: bigint }>`select count(*) from pg_prepared_statements where statement like '%note%'`.execute(db))
    .rows[0]?.count;

test("prepares a statement with parameters once, however often it runs", async () => {
  for (const id of [1n, 2n, 3n]) await db.insertInto("note").values({ id, body: "x" }).execute();
  expect(await prepared()).toBe(1n);
});

test("gives no more than 500 statements a name", async () => {
  const flood = openDatabase<Tables>({ ...database.owner, ...options, maxConnections: 1 });
  for (let n = 0; n < 510; n++) await sql`select ${"x"}::text, ${sql.raw(String(n))}`.execute(flood);
  const { rows } = await sql<{ count: bigint }>`select count(*) from pg_prepared_statements`.execute(flood);
  await flood.destroy();
  expect(rows[0]?.count).toBe(500n);
});

test("runs a prepared statement again after a column that it returns has changed its type", async () => {
  await sql`create table shape (id int4, value int4)`.execute(db);
  const read = () => sql<{ value: unknown }>`select value from shape where id = ${1}`.execute(db);
  await sql`insert into shape values (1, 7)`.execute(db);
  expect((await read()).rows).toEqual([{ value: 7 }]);
  await sql`alter table shape alter value type text`.execute(db);
  await expect(read()).rejects.toThrow("cached plan");
  expect((await read()).rows).toEqual([{ value: "7" }]);
});

test("calls a column by its camelCase name, in a statement and in a row", async () => {
  await sql`create table pair (left_part int4, right_part int4)`.execute(db);
  const pairs = db.withTables<{ pair: { leftPart: number; rightPart: number } }>();
  await pairs.insertInto("pair").values({ leftPart: 1, rightPart: 2 }).execute();
  const rows = await pairs.selectFrom("pair").selectAll().where("rightPart", "=", 2).execute();
  expect(rows).toEqual([{ leftPart: 1, rightPart: 2 }]);
});

test("leaves the names inside of JSON as they were written", async () => {
  await sql`create table document (of_what jsonb)`.execute(db);
  const documents = db.withTables<{ document: { ofWhat: unknown } }>();
  const ofWhat = { base_url: [{ deep_name: 1 }], camelCase: { snake_case: null } };
  await documents
    .insertInto("document")
    .values({ ofWhat: JSON.stringify(ofWhat) })
    .execute();
  expect(await documents.selectFrom("document").selectAll().execute()).toEqual([{ ofWhat }]);
});

test("reads int8 as bigint beyond the safe range of a number", async () => {
  const id = 9_223_372_036_854_775_807n;
  await db.insertInto("note").values({ id, body: "largest" }).execute();
  expect(await db.selectFrom("note").select("id").where("id", "=", id).execute()).toEqual([{ id }]);
});

test("tells a unique violation from other errors, by constraint where one is named", async () => {
  await db.insertInto("note").values({ id: 50n, body: "x" }).execute();
  const twice: unknown = await db
    .insertInto("note")
    .values({ id: 50n, body: "x" })
    .execute()
    .catch((error) => error);
  const absent: unknown = await sql`select * from absent`.execute(db).catch((error) => error);
  expect(isUniqueViolation(twice)).toBe(true);
  expect(isUniqueViolation(twice, "note_key")).toBe(true);
  expect(isUniqueViolation(twice, "other_key")).toBe(false);
  expect(absent).toBeInstanceOf(Error);
  expect(isUniqueViolation(absent)).toBe(false);
});

test("ends a statement that exceeds its time", async () => {
  const impatient = openDatabase({ ...database.owner, ...options, statementTimeoutMs: 50, maxConnections: 1 });
  await expect(sql`select pg_sleep(5)`.execute(impatient)).rejects.toThrow("statement timeout");
  await impatient.destroy();
});

test("reports an idle connection that broke and goes on with a new one", async () => {
  const pid = await backendOf(db);
  await admin.query("select pg_terminate_backend($1)", [pid]);
  await expect.poll(() => idleErrors.length).toBe(1);
  expect(await backendOf(db)).not.toBe(pid);
});

test("fails the transaction, not the process, when its connection breaks between two statements", async () => {
  const lost = db.transaction().execute(async (tx) => {
    await admin.query("select pg_terminate_backend($1)", [await backendOf(tx)]);
    await expect
      .poll(() =>
        admin.query("select from pg_stat_activity where application_name = $1 and state <> 'active'", [
          options.applicationName,
        ]),
      )
      .toEqual([]);
    await tx.insertInto("note").values({ id: 90n, body: "lost" }).execute();
  });
  await expect(lost).rejects.toMatchObject({ code: "UNAVAILABLE", reason: "DATABASE_UNAVAILABLE" });
  expect(await db.selectFrom("note").select("id").where("id", "=", 90n).execute()).toEqual([]);
});

test("says that the database is unavailable where nothing listens, while it stops, and when no connection is free", async () => {
  const unavailable = { code: "UNAVAILABLE", reason: "DATABASE_UNAVAILABLE" };
  const read = (from: typeof db) => from.selectFrom("note").select("id").where("id", "=", 1n).execute();
  for (const url of ["postgres://user@localhost:1/database", "postgres://user@localhost/database?host=/nowhere"]) {
    const nowhere = openDatabase<Tables>({ url, ...options, maxConnections: 1 });
    await expect(read(nowhere)).rejects.toMatchObject(unavailable);
    await nowhere.destroy();
  }
  const sleeping = sql`select pg_sleep(${1})`.execute(db);
  const verdict = expect(sleeping).rejects.toMatchObject(unavailable);
  const asleep = "select pid from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
  await expect.poll(() => admin.query<{ pid: number }>(asleep)).toHaveLength(1);
  const [{ pid } = { pid: 0 }] = await admin.query<{ pid: number }>(asleep);
  await admin.query("select pg_terminate_backend($1)", [pid]);
  await verdict;
  await db.connection().execute(async () => {
    await expect(read(db)).rejects.toMatchObject(unavailable);
  });
  await expect(read(db)).resolves.toHaveLength(1);
}, 15_000);

test("tells the caller of a text that Postgres cannot hold, and of no other fault of a statement", async () => {
  const insert = (id: bigint, body: string) => db.insertInto("note").values({ id, body }).execute();
  await expect(insert(91n, "a\0b")).rejects.toMatchObject({ code: "INVALID_ARGUMENT", reason: "INVALID_FIELD" });
  const fault: unknown = await sql`select ${"x"}::int`.execute(db).catch((error) => error);
  expect(fault).not.toBeInstanceOf(StatusError);
});

test("keeps a session lock on its own connection until that ends, and says when it is lost", async () => {
  const tryLock = "select pg_try_advisory_lock(7) as locked";
  const holder = await openConnection({ ...database.runtime, ...options });
  const other = await openConnection({ ...database.runtime, ...options });
  let lost = 0;
  holder.onLost(() => lost++);
  other.onLost(() => lost++);
  expect(await holder.query(tryLock)).toEqual([{ locked: true }]);
  expect(await other.query(tryLock)).toEqual([{ locked: false }]);
  const [session] = await holder.query<{ pid: number }>("select pg_backend_pid() as pid");
  await admin.query("select pg_terminate_backend($1)", [session?.pid]);
  await expect.poll(() => lost).toBe(1);
  await expect.poll(() => other.query(tryLock)).toEqual([{ locked: true }]);
  await holder.end();
  await other.end();
  expect(lost).toBe(1);
});

test("delivers notifications of the channels it listens to", async () => {
  const listener = await openConnection({ ...database.runtime, ...options });
  const heard: string[] = [];
  listener.onNotification((channel, payload) => heard.push(`${channel}: ${payload}`));
  await listener.query("listen leases");
  await sql`select pg_notify('others', 'no'), pg_notify('leases', ${"account 7"})`.execute(db);
  await expect.poll(() => heard).toEqual(["leases: account 7"]);
  await listener.end();
});

test("refuses a malformed URL without repeating it, and a wrong password without repeating that", async () => {
  const malformed = openConnection({ url: "postgres:// user:hunter2@", password: "x", ...options });
  await expect(malformed).rejects.toThrow(/^url: is not a database URL like postgres:\/\/user@host:5432\/database$/);
  const refused: unknown = await openConnection({ ...database.runtime, password: "swordfish%2F/@:", ...options }).catch(
    (error) => error,
  );
  expect(String(refused)).toContain("password authentication failed");
  expect(JSON.stringify(refused)).not.toContain("swordfish");
});

test("says why there is no connection where nothing listens", async () => {
  const nowhere = openConnection({ url: "postgres://user@localhost:1/database", ...options });
  await expect(nowhere).rejects.toThrow(/^No connection to the database: .*ECONNREFUSED/);
});

test("connects with a password that a URL would have to encode", async () => {
  const password = "p%41 /@:#?&é";
  const role = `${database.name}_awkward`;
  await admin.query(`create role ${role} login password '${password}' in role deputy_account`);
  const url = new URL(database.runtime.url);
  url.username = role;
  const connection = await openConnection({ url: url.href, password, ...options });
  expect(await connection.query("select session_user as name")).toEqual([{ name: role }]);
  await connection.end();
  await admin.query(`drop role ${role}`);
});
