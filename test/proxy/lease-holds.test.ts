// The arithmetic of a hold, by clocks in the test's hand.
import { beforeEach, expect, test } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { leaseHolds } from "../../services/proxy/lease-holds.ts";

const account = { projectId: "proj_1", accountId: "apn_1" };
let clocks = { monotonicMs: 0, wallMs: 0 };
beforeEach(() => {
  clocks = { monotonicMs: 5_000, wallMs: 1_000_000 };
});

function watchedHolds() {
  const holds = leaseHolds({ monotonicMs: () => clocks.monotonicMs, wallMs: () => clocks.wallMs });
  holds.heard();
  return holds;
}

function pass(ms: number): void {
  clocks.monotonicMs += ms;
  clocks.wallMs += ms;
}

test("counts a lease from before it was asked for", async () => {
  const holds = watchedHolds();
  const hold = await holds.take(account, Infinity);
  expect(hold.fault()).toMatchObject({ reason: "LEASE_EXPIRED" });
  pass(900);
  hold.grant(1_000);
  expect(hold.fault()).toBeUndefined();
  pass(100);
  expect(hold.fault()).toMatchObject({ code: "UNAVAILABLE", reason: "LEASE_EXPIRED" });
});

test.each([
  ["the monotonic clock alone, when somebody sets the wall clock back", { monotonicMs: 2_000, wallMs: -3_600_000 }],
  ["the wall clock alone, when the machine was suspended", { monotonicMs: 0, wallMs: 2_000 }],
])("ends a lease by %s", async (_name, step) => {
  const holds = watchedHolds();
  const hold = await holds.take(account, Infinity);
  hold.grant(1_000);
  clocks = { monotonicMs: clocks.monotonicMs + step.monotonicMs, wallMs: clocks.wallMs + step.wallMs };
  expect(hold.fault()).toMatchObject({ reason: "LEASE_EXPIRED" });
});

test("voids a hold over a silence, though the vault is heard again and the lease still runs", async () => {
  const holds = watchedHolds();
  const hold = await holds.take(account, Infinity);
  hold.grant(10_000);
  pass(2_900);
  holds.heard();
  expect(hold.fault()).toBeUndefined();
  pass(3_100);
  expect(hold.fault()).toMatchObject({ reason: "VAULT_UNREACHABLE" });
  holds.heard();
  expect(hold.fault()).toMatchObject({ reason: "VAULT_UNREACHABLE" });
  const next = await holds.take(account, Infinity);
  next.grant(10_000);
  expect(next.fault()).toBeUndefined();
});

test("voids the holds of the account that is meant, not of the same id in another project", async () => {
  const holds = watchedHolds();
  const own = await holds.take(account, Infinity);
  const other = await holds.take({ ...account, projectId: "proj_2" }, Infinity);
  for (const hold of [own, other]) hold.grant(1_000);
  holds.invalidate(account, { kind: "revoked" });
  expect(own.fault()).toMatchObject({ reason: "ACCOUNT_REVOKED" });
  expect(own.signal.aborted).toBe(true);
  expect(other.fault()).toBeUndefined();
  expect(other.signal.aborted).toBe(false);
});

const leaseOf = (generation: bigint, leaseDurationMs = 10_000) => ({ generation, leaseDurationMs });

test("goes on with the material of a refresh, for as long as the old lease lasts and no longer", async () => {
  const holds = watchedHolds();
  const [old, renewed] = [leaseOf(1n), leaseOf(2n)];
  const hold = await holds.take(account, Infinity);
  hold.grant(10_000);
  expect(hold.newest(old)).toBe(old);
  for (let second = 0; second < 8; second += 1) {
    pass(1_000);
    holds.heard();
  }
  holds.invalidate(account, { kind: "renewed", lease: renewed });
  expect(hold.signal.aborted).toBe(false);
  expect(hold.fault()).toBeUndefined();
  expect(hold.newest(old)).toBe(renewed);
  pass(1_900);
  expect(hold.fault()).toBeUndefined();
  pass(100);
  expect(hold.fault()).toMatchObject({ reason: "LEASE_EXPIRED" });
});

test("takes no older material for newer, in whatever order it comes, and ends with what ends first", async () => {
  const holds = watchedHolds();
  const [first, second, third] = [leaseOf(1n), leaseOf(2n), leaseOf(3n, 500)];
  const hold = await holds.take(account, Infinity);
  // On its way, while a refresh is told of: what comes is older.
  holds.invalidate(account, { kind: "renewed", lease: second });
  hold.grant(10_000);
  expect(hold.newest(first)).toBe(second);
  expect(hold.newest(third)).toBe(third);
  holds.invalidate(account, { kind: "renewed", lease: third });
  holds.invalidate(account, { kind: "renewed", lease: second });
  expect(hold.newest(first)).toBe(third);
  pass(500);
  expect(hold.fault()).toMatchObject({ reason: "LEASE_EXPIRED" });
});

test("brings no hold back that is void, and grants none that was not granted", async () => {
  const holds = watchedHolds();
  const [revoked, waiting] = [
    await holds.take(account, Infinity),
    await holds.take({ ...account, accountId: "apn_2" }, Infinity),
  ];
  revoked.grant(10_000);
  holds.invalidate(account, { kind: "revoked" });
  holds.invalidate(account, { kind: "renewed", lease: leaseOf(2n) });
  expect(revoked.fault()).toMatchObject({ reason: "ACCOUNT_REVOKED" });
  holds.invalidate({ ...account, accountId: "apn_2" }, { kind: "renewed", lease: leaseOf(2n) });
  expect(waiting.fault()).toMatchObject({ reason: "LEASE_EXPIRED" });
});

test("ends a lease that is over without breaking off what is in flight", async () => {
  const holds = watchedHolds();
  const hold = await holds.take(account, Infinity);
  hold.grant(10_000);
  holds.invalidate(account, { kind: "over" });
  expect(hold.fault()).toMatchObject({ reason: "LEASE_EXPIRED" });
  expect(hold.signal.aborted).toBe(false);
});

test("tells whoever has a discarded hold why, and lets the next one be", async () => {
  const holds = watchedHolds();
  const hold = await holds.take(account, Infinity);
  hold.grant(10_000);
  hold.discard(new StatusError("UNAVAILABLE", "CREDENTIAL_REFUSED", "Refused."));
  expect(hold.fault()).toMatchObject({ reason: "CREDENTIAL_REFUSED" });
  const next = await holds.take(account, Infinity);
  next.grant(10_000);
  expect(next.fault()).toBeUndefined();
});
