// A vault whose KEKs are in a service that goes away: what was open stays open, what starts waits sealed, and both come back
// by themselves. The provider is transit over a fake service; the watch and its database are true.
import { afterAll, afterEach, expect, test } from "vitest";
import { createLogger } from "#libs/log.ts";
import { openVaultDatabase } from "../../services/vault/schema.ts";
import { type SealState, watchSealState } from "../../services/vault/seal-state.ts";
import { transitFixture } from "../support/kek-fixtures.ts";
import { createTestDatabase } from "../support/postgres.ts";
import { until } from "./vault-fixture.ts";

const database = await createTestDatabase("vault");
const db = openVaultDatabase({
  url: database.runtime.url,
  password: database.runtime.password,
  applicationName: "vault-test",
  maxConnections: 2,
  statementTimeoutMs: 10_000,
  onIdleError: () => undefined,
});
const fixture = await transitFixture();
const watches: SealState[] = [];

/** Counts the looks, so that a test can wait for one that came after what it did. */
async function watch() {
  let looks = 0;
  const { health, ...rest } = fixture.provider();
  const provider = { ...rest, health: () => health().finally(() => looks++) };
  const log = createLogger("vault", "silent");
  const state = await watchSealState({ db, provider, log, intervalMs: 50 });
  watches.push(state);
  const nextLook = () => {
    const seen = looks;
    return until(() => looks > seen + 1);
  };
  return { state, nextLook };
}

afterEach(() => {
  for (const state of watches.splice(0)) state.stop();
  fixture.kms.misbehave(() => undefined);
});
afterAll(async () => {
  await db.destroy();
  await fixture.stop();
});

test("an outage does not seal an open vault, lost rights do, and their return opens it", async () => {
  const { state, nextLook } = await watch();
  expect(state.isOpen()).toBe(true);
  fixture.kms.misbehave(() => "break");
  await nextLook();
  expect(state.isOpen()).toBe(true);
  await expect(state.check()).rejects.toMatchObject({ reason: "KEK_UNAVAILABLE" });
  fixture.kms.misbehave(() => "deny");
  await until(() => !state.isOpen());
  fixture.kms.misbehave(() => undefined);
  await until(() => state.isOpen());
});

test("a vault that starts in an outage is sealed until the service answers", async () => {
  fixture.kms.misbehave(() => "fail");
  const { state, nextLook } = await watch();
  await nextLook();
  expect(state.isOpen()).toBe(false);
  expect(() => state.requireOpen()).toThrow("sealed");
  fixture.kms.misbehave(() => undefined);
  await until(() => state.isOpen());
});
