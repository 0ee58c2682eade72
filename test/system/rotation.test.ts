// A rotation of keys over true processes: vaults are killed at random moments while keys are wrapped anew and leases are asked
// for. No lease fails but at the process that is dead, and nothing stays behind under the old key.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { createClient } from "#libs/rpc-client.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { CredentialVaultDefinition } from "#proto/deputy/vault/v1/credential_vault.ts";
import { operatorTls } from "../../dev/bootstrap.ts";
import { type Child, startChild } from "../../dev/child.ts";
import { freePorts } from "../../dev/ports.ts";
import { readSecret, trustDomain } from "../../dev/state.ts";
import { dataKeys } from "../../services/vault/data-keys.ts";
import { fileKeyring } from "../../services/vault/keyring.ts";
import { runKeyringCommand } from "../../services/vault/keyring-command.ts";
import { openVaultDatabase } from "../../services/vault/schema.ts";
import { secretsOver } from "../../services/vault/secrets.ts";
import { startTestStack } from "../support/stack.ts";
import { insertKeys, keyOf } from "../vault/rotated-rows.ts";
import { watchLeasesAs } from "../vault/watching-proxy.ts";

const rows = 5_000;
const kills = 4;
const stack = await startTestStack();
const { state, settings, ports, call } = stack;
const projectId = stack.connection.project_id;

function vaultAt(port: number, service: "operator" | "proxy") {
  const files = state.certificates.services.proxy;
  const proxyTls = {
    ca: stack.ca,
    certificate: readFileSync(files?.certificateFile ?? "", "utf8"),
    key: readFileSync(files?.keyFile ?? "", "utf8"),
    trustDomain,
  };
  const tls = service === "operator" ? operatorTls(state) : proxyTls;
  return createClient(CredentialVaultDefinition, { address: `127.0.0.1:${port}`, tls, service: "vault" });
}

test("goes on under leases when vaults are killed, and leaves nothing under the old key", {
  timeout: 120_000,
}, async () => {
  const url = settings.vault.DEPUTY_DATABASE_URL ?? "";
  const password = readSecret(state.passwordFiles.vault);
  const db = openVaultDatabase({
    ...{ url, password, applicationName: "test", statementTimeoutMs: 10_000, maxConnections: 2 },
  });
  const keyring = fileKeyring({ path: state.keyringFile });
  const secrets = secretsOver(dataKeys({ provider: keyring, now: () => performance.now() }), () => undefined);
  const accountIds = await insertKeys({ db, secrets }, { projectId, prefix: "rotate", count: rows });
  await db.destroy();

  const secondPort = (await freePorts()).vault;
  const startSecond = () =>
    startChild({
      ...{
        name: "vault-2",
        file: "services/vault/main.ts",
        logDirectory: state.logs,
        cacheDirectory: state.compileCache,
      },
      settings: { ...settings.vault, DEPUTY_VAULT_INTERNAL_ADDRESS: `127.0.0.1:${secondPort}` },
    });
  let second: Child = startSecond();
  const [operator, secondOperator, asProxy] = [
    vaultAt(ports.vault, "operator"),
    vaultAt(secondPort, "operator"),
    vaultAt(ports.vault, "proxy"),
  ];
  const soon = () => ({ deadlineMs: Date.now() + 10_000 });
  const statusOf = (client: typeof operator) => client.getVaultStatus({}, soon()).catch(() => undefined);
  async function until<Value>(look: () => Promise<Value | undefined | false>): Promise<Value> {
    const giveUpMs = Date.now() + 60_000;
    while (Date.now() < giveUpMs) {
      const found = await look();
      if (found) return found;
      await sleep(50);
    }
    throw new Error("did not come true in time");
  }

  const proxyId = "prx_rotation";
  const watch = await watchLeasesAs(asProxy, proxyId);
  const leaseOf = (accountId: string) => {
    const request = { projectId, environment: Environment.DEVELOPMENT, externalUserId: "user-1", accountId, proxyId };
    return asProxy.leaseInjection(request, call());
  };

  try {
    await until(async () => (await statusOf(secondOperator))?.processes === 2n);
    const { active: old } = await keyring.keyIds();
    await runKeyringCommand(["add", state.keyringFile], Date.now);
    const fresh = (await keyring.keyIds()).all.at(-1) ?? "";
    await until(async () => (await statusOf(operator))?.processesByKek[fresh] === 2n);
    await runKeyringCommand(["activate", state.keyringFile, fresh], Date.now);

    let leases = 0;
    let rotating = true;
    const readers = Array.from({ length: 2 }, async (_, reader) => {
      for (let index = reader; rotating; index += 7) {
        const accountId = accountIds[index % rows] ?? "";
        const { lease } = await leaseOf(accountId);
        expect(lease?.headers[0]?.value).toBe(keyOf(accountId));
        leases += 1;
      }
    });

    // The one that was asked dies first.
    const { remaining } = await secondOperator.rotateKeys({ activateKekId: fresh }, soon());
    expect(remaining).toBeGreaterThanOrEqual(BigInt(rows));
    const left: bigint[] = [];
    for (let kill = 0; kill < kills; kill += 1) {
      await sleep(100 + Math.random() * 400);
      left.push((await statusOf(operator))?.dataKeysByKek[old] ?? 0n);
      const exited = once(second.process, "exit");
      second.process.kill("SIGKILL");
      await exited;
      second = startSecond();
      if (kill < kills - 1) await until(() => statusOf(secondOperator));
    }
    await until(async () => (await statusOf(operator))?.dataKeysByKek[old] === undefined);
    rotating = false;
    await Promise.all(readers);
    expect(leases).toBeGreaterThan(20);
    expect(left[0], "the first kill came before the end").toBeGreaterThan(0n);

    await runKeyringCommand(["remove", state.keyringFile, old], Date.now);
    // A vault looks at its keyring every five seconds; the reports of those that were killed last longer.
    await sleep(6_000);
    expect((await statusOf(operator))?.sealed).toBe(false);
    for (const accountId of accountIds.slice(0, 500)) {
      const { lease } = await leaseOf(accountId);
      expect(lease?.headers[0]?.value).toBe(keyOf(accountId));
    }
    expect((await statusOf(operator))?.damagedDataKeys).toBe(0n);
  } finally {
    watch.goodbye();
    for (const client of [operator, secondOperator, asProxy]) client.close();
    await second.stop();
  }
});
