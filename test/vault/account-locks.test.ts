// The locks' own connection: what it says when there is none to be had.
import { expect, test } from "vitest";
import { accountLocks } from "../../services/vault/account-locks.ts";

test("calls a database that cannot be reached an outage, which is no fault of the account", async () => {
  // Port 1 refuses.
  const url = "postgres://nobody@127.0.0.1:1/nowhere";
  const locks = accountLocks({ url, applicationName: "test", statementTimeoutMs: 1_000 });
  const locked = locks.tryLock({ projectId: "proj_1", accountId: "apn_1" });
  await expect(locked).rejects.toMatchObject({ code: "UNAVAILABLE", reason: "DATABASE_UNAVAILABLE" });
  await locks.end();
});
