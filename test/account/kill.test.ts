// A true account process that is killed in the middle of a revocation: whoever repeats finishes it, and in the end there is one
// receipt, one audit entry and one event for each account.
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { startChild } from "../../dev/child.ts";
import { freePorts } from "../../dev/ports.ts";
import { testTls } from "../support/tls.ts";
import { call, development, insertAccounts, newProject, startAccount } from "./harness.ts";

const account = await startAccount();
const { vault, db } = account;
const directory = mkdtempSync(join(tmpdir(), "deputy-kill-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
const everything = { $case: "wholeEnvironment", value: true } as const;

/** Starts a process of the service beside the one of the harness, on the same database. */
async function startProcess() {
  const [tls, ports] = [await testTls("account"), await freePorts()];
  const file = (name: string, text: string) => {
    writeFileSync(join(directory, name), text, { mode: 0o600 });
    return join(directory, name);
  };
  const child = startChild({
    name: `account-${ports.account}`,
    file: "services/account/main.ts",
    logDirectory: directory,
    cacheDirectory: join(directory, "compile-cache"),
    settings: {
      DEPUTY_DEVELOPMENT: "true",
      DEPUTY_TRUST_DOMAIN: tls.trustDomain,
      DEPUTY_TLS_CA_FILE: file("ca.pem", tls.ca),
      DEPUTY_TLS_CERTIFICATE_FILE: file("account.pem", tls.certificate ?? ""),
      DEPUTY_TLS_KEY_FILE: file("account-key.pem", tls.key ?? ""),
      DEPUTY_ACCOUNT_INTERNAL_ADDRESS: `127.0.0.1:${ports.account}`,
      DEPUTY_ACCOUNT_PUBLIC_ADDRESS: `127.0.0.1:${ports.accountPublic}`,
      DEPUTY_VAULT_ADDRESS: vault.address,
      DEPUTY_DATABASE_URL: account.database.runtime.url,
      DEPUTY_DATABASE_PASSWORD_FILE: file("password", account.database.runtime.password),
      DEPUTY_TOKEN_KEY_FILE: file("token-key.pem", account.tokenKey),
    },
  });
  afterAll(() => child.stop());
  for (const giveUpMs = Date.now() + 20_000; !readFileSync(child.logFile, "utf8").includes('"msg":"serving"'); ) {
    if (child.process.exitCode !== null || Date.now() > giveUpMs) throw new Error(readFileSync(child.logFile, "utf8"));
    await sleep(50);
  }
  const client = createClient(AccountServiceDefinition, {
    ...{ address: `127.0.0.1:${ports.account}`, tls: await testTls("gateway"), service: "account" },
  });
  afterAll(() => client.close());
  return { client, process: child.process };
}

/** Kills the process at the n-th time that the vault is asked by this method: the vault goes on, its answer reaches nobody. */
function killAt(
  method: string,
  count: number,
  { process }: Awaited<ReturnType<typeof startProcess>>,
): Promise<unknown> {
  const exit = once(process, "exit");
  let times = 0;
  vault.hooks.before = async (asked) => {
    if (asked !== method || ++times < count) return;
    delete vault.hooks.before;
    process.kill("SIGKILL");
    await exit;
  };
  return exit;
}

async function toldOf(projectId: string) {
  const events = await db
    .selectFrom("events")
    .selectAll()
    .where("projectId", "=", projectId)
    .orderBy("sequence")
    .execute();
  const entries = await db
    .selectFrom("auditEntries")
    .selectAll()
    .where("projectId", "=", projectId)
    .orderBy("createTime")
    .execute();
  return {
    revoked: events.filter(({ type }) => type === "account.revoked").map(({ accountId }) => accountId),
    audited: entries.map(({ resourceId }) => resourceId).filter((id) => id.startsWith("apn_")),
  };
}

test("RevokeAllAccounts is finished by a repeat, and each account has exactly one receipt", async () => {
  const acme = await newProject(account);
  const ids = [...(await insertAccounts(account, acme.projectId, 1300))].sort();
  const first = await startProcess();
  // The first batch has been ended by then.
  const exit = killAt("destroyCredentials", 3, first);
  const received: string[] = [];
  const broken = async () => {
    const stream = first.client.revokeAllAccounts({ environment: development, target: everything }, call(acme.token));
    for await (const { receipt } of stream) received.push(receipt?.accountId ?? "");
  };
  await expect(broken()).rejects.toMatchObject({ code: "UNAVAILABLE" });
  await exit;
  const states = await db.selectFrom("accounts").select("state").where("projectId", "=", acme.projectId).execute();
  expect([...new Set(states.map(({ state }) => state))].sort()).toEqual(["ACTIVE", "REVOKED", "REVOKING"]);
  expect(received.length).toBeLessThanOrEqual(800);

  const second = await startProcess();
  const rest: string[] = [];
  const again = { environment: development, target: everything, includeRevoked: true } as const;
  for await (const { receipt, totalSize } of second.client.revokeAllAccounts(again, call(acme.token))) {
    expect(receipt?.jws).toBe(`signed-${receipt?.accountId}`);
    expect(totalSize).toBe(1300);
    rest.push(receipt?.accountId ?? "");
  }
  // Whatever was lost with the first process: the repeat has all of them, each once.
  expect(rest.sort()).toEqual(ids);
  const { revoked, audited } = await toldOf(acme.projectId);
  expect(revoked.sort()).toEqual(ids);
  expect(audited.sort()).toEqual(ids);
});

test("DeleteUser is finished by a repeat, wherever it was killed", async () => {
  const acme = await newProject(account);
  const ids = [...(await insertAccounts(account, acme.projectId, 500, "kim"))].sort();
  const request = { environment: development, externalUserId: "kim" } as const;
  for (const [method, count] of [["destroyCredentials", 2] as const, ["eraseUser", 1] as const]) {
    const process = await startProcess();
    const exit = killAt(method, count, process);
    await expect(process.client.deleteUser(request, call(acme.token))).rejects.toMatchObject({ code: "UNAVAILABLE" });
    await exit;
  }
  const last = await startProcess();
  const { receipts } = await last.client.deleteUser(request, call(acme.token));
  expect(receipts.map(({ accountId }) => accountId).sort()).toEqual(ids);
  const { revoked, audited } = await toldOf(acme.projectId);
  expect(revoked.sort()).toEqual(ids);
  expect(audited.sort()).toEqual(ids);
  const left = await db.selectFrom("accounts").select("id").where("externalUserId", "=", "kim").execute();
  expect(left).toEqual([]);
});
