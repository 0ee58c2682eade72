// Grants of the outbox whose OAuth client goes while they are being destroyed, told, or sealed by somebody else: none is told with
// another client, and none is lost.
import { setTimeout as sleep } from "node:timers/promises";
import { beforeEach, expect, test } from "vitest";
import { openEgress } from "#libs/egress.ts";
import { createLogger } from "#libs/log.ts";
import { vaultItself } from "../../services/vault/audit-entries.ts";
import { revokeCredentials } from "../../services/vault/destroyed-credentials.ts";
import { putOauthClient } from "../../services/vault/oauth-client-changes.ts";
import { holdOauthClients } from "../../services/vault/oauth-clients.ts";
import { revoke } from "../../services/vault/revocation-job.ts";
import { takeOverGrants } from "../../services/vault/revocations.ts";
import { sealWithClient } from "../../services/vault/sealed-anew.ts";
import type { Secrets } from "../../services/vault/secrets.ts";
import type { Fault } from "../support/provider-shim.ts";
import { soon, until, vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();
const { db, shim, catalog, oauthAppId, exemptTargets } = vault;
const egress = openEgress({ exemptTargets, extraCa: vault.tls.ca });
vault.ends.push(() => egress.close());
const { secrets } = vault.vault;
const key = { projectId: whose.projectId, oauthAppId };
const destroyClient = () => vault.asAccount.destroyOauthClient(key, soon());
const recordOf = (accountId: string) =>
  db.selectFrom("revocations").selectAll().where("accountId", "=", accountId).executeTakeFirstOrThrow();

/** An account whose grant lies in the outbox as it lay in the row, until the provider is let answer the first call. */
async function takenOver(answer?: Fault) {
  const accountId = await vault.connectAccount();
  const { lease: before } = await vault.lease(accountId);
  const gate = Promise.withResolvers<void>();
  let asked = false;
  shim.misbehave(async (path) => {
    if (path !== "/token/revocation" || asked) return undefined;
    asked = true;
    await gate.promise;
    return answer;
  });
  await vault.destroy(accountId);
  await until(() => asked);
  const told = async () => {
    gate.resolve();
    await until(async () => (await recordOf(accountId)).state === "DONE");
    expect(await vault.callApi(before)).toBe(401);
  };
  return { accountId, record: await recordOf(accountId), told };
}

/** What is done when the first secret has been opened, before its opener goes on. */
function onceOpened(work: () => Promise<unknown>): Secrets {
  let isFirst = true;
  return {
    ...secrets,
    async open(owner, row) {
      const value = await secrets.open<never>(owner, row);
      if (isFirst) {
        isFirst = false;
        await work();
      }
      return value;
    },
  };
}

beforeEach(async () => {
  await vault.putClient();
});

test.each([
  ["another one takes its client's place", () => vault.putClient(["a secret"], false, "another-client")],
  ["its client is destroyed", destroyClient],
])("a call that has read a record before %s tells the provider with the client that it had", async (_, change) => {
  const { accountId, record, told } = await takenOver({ status: 503, body: "{}" });
  const providers = { egress, exemptTargets };
  const options = { db, catalog, providers, log: createLogger("test", "silent"), secrets: onceOpened(change) };
  await revoke(options, record, true);
  expect((await recordOf(accountId)).state).toBe("DONE");
  await told();
});

test("of two who seal a record with its client the second leaves it, though the client has gone meanwhile", async () => {
  const { accountId, record, told } = await takenOver();
  expect(record.credentialGeneration).toBe(1n);
  await sealWithClient({ db, secrets: onceOpened(destroyClient) }, key);
  expect(await recordOf(accountId)).toMatchObject({ state: "PENDING", credentialGeneration: null });
  await told();
});

test("a client waits for those who are destroying, and what they leave is sealed with it", async () => {
  const accountId = await vault.connectAccount();
  const { lease: before } = await vault.lease(accountId);
  const filter = { projectId: whose.projectId, environment: "development", accountIds: [accountId] } as const;
  const gate = Promise.withResolvers<void>();
  shim.misbehave(async (path) => {
    if (path === "/token/revocation") await gate.promise;
    return undefined;
  });
  let ending: Promise<unknown> | undefined;
  await db.transaction().execute(async (transaction) => {
    expect(await holdOauthClients(transaction, whose.projectId, [oauthAppId])).toHaveLength(1);
    ending = destroyClient();
    await sleep(300);
    await takeOverGrants(transaction, { ...filter, revokeSharedGrant: false }, [{ accountId, hasClient: true }]);
    await revokeCredentials(transaction, filter, vaultItself);
  });
  await ending;
  expect(await recordOf(accountId)).toMatchObject({ state: "PENDING", credentialGeneration: null });
  gate.resolve();
  await until(async () => (await recordOf(accountId)).state === "DONE");
  expect(await vault.callApi(before)).toBe(401);
});

test("a client that gets new secrets and stays the same seals nothing, and one of another app does", async () => {
  const { accountId, told } = await takenOver();
  await vault.putClient(["not yet valid", vault.clientSecret]);
  expect((await recordOf(accountId)).credentialGeneration).toBe(1n);
  const ofAnother = { ...key, appSlug: "sandbox_strict", clientId: "deputy-test", secrets: ["a secret"] };
  await putOauthClient({ db, secrets }, ofAnother, vaultItself);
  expect((await recordOf(accountId)).credentialGeneration).toBeNull();
  await told();
});
