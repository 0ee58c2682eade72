// The audit's chain: everything gets into it, and nothing sealed can be changed unseen, neither in a dump nor in the database by
// the owner of its tables.
import { execFile } from "node:child_process";
import { createPublicKey, generateKeyPairSync } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test } from "vitest";
import { openConnection } from "#libs/database.ts";
import { readSigningKey } from "#libs/signing-key.ts";
import { chainEntries, firstHash, signCheckpoint } from "../../services/vault/audit-chain.ts";
import { runVerify } from "../../services/vault/audit-command.ts";
import { type DumpLine, dumpAudit, entryOf } from "../../services/vault/audit-dump.ts";
import { soon, until, vaultFixture } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { db } = vault;
const operator = await vault.vault.as("operator");
const privatePem = await readFile(vault.signingKeyFile, "utf8");
const keyFile = join(vault.directory, "audit.pub.pem");
await writeFile(keyFile, createPublicKey(privatePem).export({ format: "pem", type: "spki" }));

const owner = await openConnection({
  ...vault.database.owner,
  applicationName: "test",
  statementTimeoutMs: 10_000,
});
afterAll(() => owner.end());

const pending = async () => (await db.selectFrom("auditPending").select("id").execute()).length;
const allSealed = () => until(async () => (await pending()) === 0);

async function dump(): Promise<DumpLine[]> {
  await allSealed();
  return Array.fromAsync(dumpAudit(db));
}

let dumps = 0;
async function verify(lines: readonly unknown[], ...more: string[]): Promise<string> {
  const path = join(vault.directory, `audit-${++dumps}.jsonl`);
  await writeFile(path, lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
  const { text, ok } = await runVerify([path, "--key", keyFile, ...more]);
  expect(ok).toBe(!text.startsWith("BROKEN"));
  return text;
}

function checkpointsOf(lines: readonly DumpLine[]) {
  return lines.flatMap((line) => ("checkpoint" in line ? [line] : []));
}

/** A dump of at least `count` checkpoints, the first two with more than one entry. */
async function longDump(count: number) {
  while (checkpointsOf(await dump()).length < count) {
    await vault.connectAccount();
    await allSealed();
  }
  return checkpointsOf(await dump());
}

test("seals everything within moments into one chain, over several vaults at once", async () => {
  const other = await vault.startVault({ worker: false });
  const accounts = await Promise.all(Array.from({ length: 4 }, vault.connectAccount));
  const proxies = [vault.asProxy, await other.as("proxy")];
  for (let round = 0; round < 10; round += 1) {
    const leases = proxies.flatMap((proxy) => accounts.map((accountId) => vault.leaseBy(proxy, accountId)));
    await Promise.all(leases);
  }
  const sinceMs = performance.now();
  await until(async () => (await pending()) === 0 && (await countLeases(accounts)) === 80);
  // A fifth of a second as a rule: the machine has other work.
  expect(performance.now() - sinceMs).toBeLessThan(3_000);
  const lines = await dump();
  const total = checkpointsOf(lines).reduce((sum, { entries }) => sum + entries.length, 0);
  const { count } = await db
    .selectFrom("auditEntries")
    .select((eb) => eb.fn.countAll<bigint>().as("count"))
    .executeTakeFirstOrThrow();
  expect(BigInt(total)).toBe(count);
  const head = checkpointsOf(lines).at(-1)?.checkpoint;
  expect(await verify(lines)).toBe(
    `${total} entries in ${head?.number} checkpoints, valid to ${head?.time}, head ${head?.number}:${head?.hash}`,
  );
  const status = await operator.getVaultStatus({}, soon());
  expect(status).toMatchObject({ auditUnavailable: false, auditCheckpointNumber: BigInt(head?.number ?? 0) });
  expect(status.auditCheckpointHash).toBe(head?.hash);
  await other.stop();
});

async function countLeases(accounts: readonly string[]): Promise<number> {
  const entries = await db
    .selectFrom("auditEntries")
    .select("id")
    .where("accountId", "in", accounts)
    .where("action", "=", "credential.leased")
    .execute();
  return entries.length;
}

test("names what was changed, deleted, put in or moved in a dump", async () => {
  const sound = await longDump(4);
  const tampered = (change: (lines: typeof sound) => unknown): Promise<string> => {
    const lines = structuredClone(sound);
    return verify((change(lines) as unknown[] | undefined) ?? lines);
  };
  const at = sound.findIndex(({ entries }) => entries.length > 1);
  const line = sound[at];
  const [first, second] = line?.entries ?? [];
  const number = line?.checkpoint.number;
  if (line === undefined || first === undefined || second === undefined)
    throw new Error("no checkpoint of two entries");
  const target = (lines: typeof sound) => lines[at] ?? line;

  for (const field of ["account_id", "action", "service", "subject", "purpose", "request_id", "reason"] as const) {
    const text = await tampered((lines) => void Object.assign(target(lines).entries[0] ?? {}, { [field]: "another" }));
    expect(text, field).toContain(`entry ${first.id} of checkpoint ${number} was changed`);
  }
  for (const values of [{ time: "2020-01-01T00:00:00.000Z" }, { delay_ms: 7 }]) {
    const text = await tampered((lines) => void Object.assign(target(lines).entries[1] ?? {}, values));
    expect(text).toContain(`entry ${second.id} of checkpoint ${number} was changed`);
  }
  // What is not hashed has no place in a dump.
  const annotated = await tampered(
    (lines) => void Object.assign(target(lines).entries[0] ?? {}, { note: "all is well" }),
  );
  expect(annotated).toContain(`line ${at + 1} is not a line of a dump`);
  // The end of one field put at the beginning of the next.
  const shifted = {
    project_id: first.project_id.slice(0, -1),
    environment: `${first.project_id.at(-1)}${first.environment}`,
  };
  expect(await tampered((lines) => void Object.assign(target(lines).entries[0] ?? {}, shifted))).toContain(
    "was changed",
  );
  expect(await tampered((lines) => void target(lines).entries.shift())).toContain(
    `entry ${first.id} of checkpoint ${number} is missing`,
  );
  expect(await tampered((lines) => void target(lines).entries.reverse())).toContain("missing or not in its place");
  const swapped = await tampered((lines) => {
    const { checkpoint, entries } = target(lines);
    entries.reverse();
    checkpoint.entry_ids.reverse();
  });
  expect(swapped).toContain("was changed");
  expect(await tampered((lines) => void target(lines).entries.push({ ...first, id: "999999" }))).toContain(
    `checkpoint ${number} has entries that it does not name`,
  );
  expect(await tampered((lines) => void lines.splice(1, 1))).toContain("checkpoint 2 is missing: 3 is in its place");
  expect(await tampered((lines) => void lines.splice(1, 2, ...lines.slice(1, 3).reverse()))).toContain(
    "checkpoint 2 is missing",
  );
  const renumbered = await tampered(
    (lines) =>
      lines.splice(1, 1) &&
      lines.map((one, index) => ({ ...one, checkpoint: { ...one.checkpoint, number: `${index + 1}` } })),
  );
  expect(renumbered).toContain("checkpoint 2 does not follow the one before it");
  for (const values of [{ time: "2020-01-01T00:00:00.000Z" }, { signature: "00".repeat(64) }]) {
    expect(await tampered((lines) => void Object.assign(target(lines).checkpoint, values))).toContain(
      `checkpoint ${number} is not signed by the key`,
    );
  }
  expect(
    await tampered((lines) => [...lines, { entry: { ...first, id: "999999", time: "2020-01-01T00:00:00.000Z" } }]),
  ).toContain("entry 999999 is in no checkpoint");
  expect(
    await tampered((lines) => [...lines, { entry: { ...first, id: "999999", time: new Date().toISOString() } }]),
  ).toContain("1 newer entries are not sealed yet");
  expect(await tampered((lines) => [...lines, { note: "all is well" }])).toContain(`line ${sound.length + 1} is not`);
});

test("finds a chain that was computed anew, with no key, another key, or a forged signature", async () => {
  const sound = await longDump(3);
  const { privateKey } = generateKeyPairSync("ed25519");
  const otherPem = privateKey.export({ format: "pem", type: "pkcs8" }).toString();
  const other = await readSigningKey("test", otherPem);
  const own = await readSigningKey("test", privatePem);
  const forged = (keyId: string) => {
    let prevHash = firstHash;
    return structuredClone(sound).map(({ checkpoint, entries }) => {
      for (const entry of entries) entry.account_id = "apn_other";
      const hashes = chainEntries(prevHash, entries.map(entryOf));
      const hash = hashes.at(-1) ?? prevHash;
      const head = { number: BigInt(checkpoint.number), time: new Date(checkpoint.time), prevHash, hash, keyId };
      const signature = signCheckpoint(head, other).toString("hex");
      const changed = { prev_hash: prevHash.toString("hex"), hash: hash.toString("hex"), key_id: keyId, signature };
      prevHash = hash;
      return {
        checkpoint: { ...checkpoint, ...changed, entry_hashes: hashes.map((one) => one.toString("hex")) },
        entries,
      };
    });
  };
  expect(await verify(forged(own.keyId))).toContain(`checkpoint 1 is not signed by the key ${own.keyId}`);
  expect(await verify(forged(other.keyId))).toContain(`signed by the key ${other.keyId}, which was not given`);
  // The same forgery holds for whoever takes the forger's key: the check fails for no other reason.
  const otherFile = join(vault.directory, "other.pem");
  await writeFile(otherFile, createPublicKey(otherPem).export({ format: "pem", type: "spki" }));
  expect(await verify(forged(other.keyId), "--key", otherFile)).toContain("entries in");
  await writeFile(otherFile, JSON.stringify(createPublicKey(privatePem).export({ format: "jwk" })));
  expect(await verify(sound, "--key", otherFile)).toContain("entries in");
});

test("finds checkpoints cut off at the end by a head that was noted elsewhere, and by nothing else", async () => {
  const sound = await longDump(3);
  const head = sound.at(-1)?.checkpoint;
  const noted = `${head?.number}:${head?.hash}`;
  expect(await verify(sound, "--head", noted)).toContain(`head ${noted}`);
  expect(await verify(sound.slice(0, -1))).toContain("entries in");
  expect(await verify(sound.slice(0, -1), "--head", noted)).toContain(`checkpoint ${head?.number} is missing`);
  const another = `${head?.number}:${"00".repeat(32)}`;
  expect(await verify(sound, "--head", another)).toContain("has another hash than was noted");
});

const swapFirstTwo = `update audit_entries as a set (action, account_id, request_id) = (b.action, b.account_id, b.request_id)
  from audit_entries as b where a.id in (1, 2) and b.id = 3 - a.id`;

// Each is undone by its second statement: the tests share the database.
test.each([
  [
    "a changed field",
    "update audit_entries set purpose = 'x' where id = 2",
    "update audit_entries set purpose = '' where id = 2",
    "entry 2 of checkpoint",
  ],
  [
    "a deleted entry",
    "create table kept as select * from audit_entries where id = 2; delete from audit_entries where id = 2",
    "insert into audit_entries overriding system value select * from kept; delete from audit_pending; drop table kept",
    "entry 2 of checkpoint",
  ],
  [
    "a deleted checkpoint",
    "create table kept as select * from audit_checkpoints where number = 2; delete from audit_checkpoints where number = 2",
    "insert into audit_checkpoints select * from kept; drop table kept",
    "checkpoint 2 is missing",
  ],
  ["two entries that changed places", swapFirstTwo, swapFirstTwo, "was changed"],
  [
    "an entry that was put in past the sealing",
    `alter table audit_entries disable trigger note_pending;
     insert into audit_entries (action, service, time) values ('x', 'vault', now() - interval '1 hour');
     alter table audit_entries enable trigger note_pending`,
    "delete from audit_entries where action = 'x'",
    "is in no checkpoint",
  ],
  [
    "a forged signature",
    `create table kept as select number, signature from audit_checkpoints where number = 1;
     update audit_checkpoints set signature = decode(repeat('00', 64), 'hex') where number = 1`,
    "update audit_checkpoints c set signature = k.signature from kept k where c.number = k.number; drop table kept",
    "checkpoint 1 is not signed",
  ],
])("finds in the database, as its owner left it: %s", async (_what, tamper, undo, fault) => {
  await longDump(3);
  await owner.query(tamper);
  expect(await verify(await Array.fromAsync(dumpAudit(db)))).toContain(fault);
  await owner.query(undo);
  expect(await verify(await dump())).toContain("entries in");
});

test("exports and verifies by command, with the status that a script looks at", async () => {
  const run = async (parameters: readonly string[]) => {
    const passwordFile = join(vault.directory, "password");
    await writeFile(passwordFile, vault.database.runtime.password, { mode: 0o600 });
    const env = { DEPUTY_DATABASE_URL: vault.database.runtime.url, DEPUTY_DATABASE_PASSWORD_FILE: passwordFile };
    const options = { env: { ...process.env, ...env }, maxBuffer: 64 * 1024 * 1024 };
    const command = promisify(execFile)(process.execPath, ["services/vault/audit-command.ts", ...parameters], options);
    return command.then(
      ({ stdout }) => ({ status: 0, stdout, stderr: "" }),
      ({ code, stdout, stderr }) => ({ status: code as number, stdout: String(stdout), stderr: String(stderr) }),
    );
  };
  await longDump(1);
  await owner.query("update audit_entries set purpose = 'x' where id = 1");
  const path = join(vault.directory, "exported.jsonl");
  const exported = await run(["export"]);
  expect(exported.status).toBe(0);
  await writeFile(path, exported.stdout);
  const changed = await run(["verify", path, "--key", keyFile]);
  expect(changed).toMatchObject({ status: 1, stdout: "BROKEN: entry 1 of checkpoint 1 was changed\n" });
  await owner.query("update audit_entries set purpose = '' where id = 1");
  await writeFile(path, (await run(["export"])).stdout);
  const sound = await run(["verify", path, "--key", keyFile]);
  expect(sound).toMatchObject({
    status: 0,
    stdout: expect.stringMatching(/^\d+ entries in \d+ checkpoints, valid to /),
  });
  for (const wrong of [
    [],
    ["verify", path],
    ["verify", path, "--key", keyFile, "--head", "1"],
    ["verify", path, "--key", path],
  ]) {
    expect(await run(wrong)).toMatchObject({ status: 1, stdout: "", stderr: expect.stringMatching(/usage|head|key/) });
  }
}, 60_000);
