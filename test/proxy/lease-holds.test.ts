// The arithmetic of a hold, by clocks in the test's hand.
import { beforeEach, expect, test } from "vitest";
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
  holds.invalidate(account, true);
  expect(own.fault()).toMatchObject({ reason: "ACCOUNT_REVOKED" });
  expect(own.signal.aborted).toBe(true);
  expect(other.fault()).toBeUndefined();
  expect(other.signal.aborted).toBe(false);
});
