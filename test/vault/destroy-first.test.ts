// Who destroys goes before calls to providers, as long as there is something to destroy.
import { expect, test } from "vitest";
import { createLogger } from "#libs/log.ts";
import { vaultItself } from "../../services/vault/audit-entries.ts";
import { type CallersFirst, callersFirst } from "../../services/vault/callers-first.ts";
import { destroyCredentials } from "../../services/vault/destroy.ts";
import { listenForLeases } from "../../services/vault/lease-signals.ts";
import { vaultFixture, whose } from "./vault-fixture.ts";

const vault = await vaultFixture();

test("holds calls to providers back while it destroys, and not for a repeat", async () => {
  const accountIds = [await vault.connectAccount()];
  const access = { ...vault.database.runtime, applicationName: "first-test", statementTimeoutMs: 10_000 };
  const signals = listenForLeases(access, createLogger("test", "silent"));
  vault.ends.push(() => signals.stop());
  let served = 0;
  const counting: CallersFirst = {
    ...callersFirst(),
    serve(work) {
      served += 1;
      return work();
    },
  };
  const { db, catalog, signingKey } = vault;
  const options = { db, catalog, signals, signingKey, callersFirst: counting };
  const request = { projectId: whose.projectId, environment: "development", accountIds } as const;
  const destroy = () => destroyCredentials(options, { ...request, revokeSharedGrant: false, actor: vaultItself });
  expect(await destroy()).toHaveLength(1);
  expect(served).toBe(1);
  expect(await destroy()).toHaveLength(1);
  expect(served).toBe(1);
});
