// Data keys and their cache, over the provider `file` on a true file.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { dataKeys } from "../../services/vault/data-keys.ts";
import { newDataKey } from "../../services/vault/envelope.ts";
import { createKeyringFile, fileKeyring, type KekProvider } from "../../services/vault/keyring.ts";

let directory: string;
let path: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "data-keys-"));
  path = join(directory, "keyring.json");
  await createKeyringFile({ path, now: Date.now });
});

afterAll(() => rm(directory, { recursive: true }));

/** The true provider, with its unwraps counted and, on demand, failing. */
function countedProvider(): KekProvider & { unwraps: number; failing: boolean } {
  const inner = fileKeyring({ path });
  const counted = {
    ...inner,
    unwraps: 0,
    failing: false,
    async unwrap(...[wrapped, of]: Parameters<KekProvider["unwrap"]>) {
      counted.unwraps++;
      if (counted.failing) throw new StatusError("UNAVAILABLE", "KEK_PROVIDER_UNAVAILABLE", "No answer.");
      return inner.unwrap(wrapped, of);
    },
  };
  return counted;
}

test("data keys are made anew for each record, and unwrap to what was made", async () => {
  const keys = dataKeys({ provider: fileKeyring({ path }), now: () => 0 });
  const { key, ...row } = await keys.create("apn_1");
  const other = await keys.create("apn_1");
  expect(row).toMatchObject({ accountId: "apn_1", kekId: expect.stringMatching(/^kek_[0-9a-f]{16}$/) });
  expect(other.dataKeyId).not.toBe(row.dataKeyId);
  expect(other.key.equals(key)).toBe(false);
  expect((await keys.unwrap(row)).equals(key)).toBe(true);
});

test("data keys are unwrapped once for all who ask within five minutes, asked at once or later", async () => {
  let timeMs = 0;
  const provider = countedProvider();
  const keys = dataKeys({ provider, now: () => timeMs });
  const row = await keys.create("apn_1");
  await Promise.all([keys.unwrap(row), keys.unwrap(row), keys.unwrap(row)]);
  timeMs = 299_999;
  await keys.unwrap(row);
  expect(provider.unwraps).toBe(1);
  timeMs = 300_000;
  await keys.unwrap(row);
  expect(provider.unwraps).toBe(2);
});

test("data keys in use outlive an outage of the provider, and a failure is not remembered", async () => {
  const provider = countedProvider();
  const keys = dataKeys({ provider, now: () => 0 });
  const [warm, cold] = [await keys.create("apn_1"), await keys.create("apn_2")];
  await keys.unwrap(warm);
  provider.failing = true;
  expect((await keys.unwrap(warm)).equals(warm.key)).toBe(true);
  await expect(keys.unwrap(cold)).rejects.toMatchObject({ code: "UNAVAILABLE" });
  provider.failing = false;
  expect((await keys.unwrap(cold)).equals(cold.key)).toBe(true);
});

test("data keys in the cache pass no row that the provider would refuse", async () => {
  const keys = dataKeys({ provider: fileKeyring({ path }), now: () => 0 });
  const { key: _key, ...row } = await keys.create("apn_1");
  await keys.unwrap(row);
  await expect(keys.unwrap({ ...row, accountId: "apn_2" })).rejects.toMatchObject({ reason: "TAMPERED" });
  await expect(keys.unwrap({ ...row, dataKeyId: "dk_2" })).rejects.toMatchObject({ reason: "TAMPERED" });
  await expect(keys.unwrap({ ...row, kekId: "kek_b" })).rejects.toMatchObject({ reason: "SEALED" });
  const wrappedDataKey = Buffer.alloc(row.wrappedDataKey.length, 1);
  await expect(keys.unwrap({ ...row, wrappedDataKey })).rejects.toMatchObject({ reason: "TAMPERED" });
});

test("data keys beyond ten thousand push out the oldest", async () => {
  const key = newDataKey();
  let unwraps = 0;
  const provider: KekProvider = {
    ...fileKeyring({ path }),
    async unwrap() {
      unwraps++;
      return key;
    },
  };
  const keys = dataKeys({ provider, now: () => 0 });
  const { key: _key, ...row } = await keys.create("apn_1");
  const unwrapFrom = async (first: number, last: number) => {
    for (let i = first; i <= last; i++) await keys.unwrap({ ...row, dataKeyId: `dk_${i}` });
    return unwraps;
  };
  expect(await unwrapFrom(0, 9_999)).toBe(10_000);
  expect(await unwrapFrom(0, 9_999)).toBe(10_000);
  expect(await unwrapFrom(10_000, 10_000)).toBe(10_001);
  expect(await unwrapFrom(1, 10_000)).toBe(10_001);
  expect(await unwrapFrom(0, 0)).toBe(10_002);
});
