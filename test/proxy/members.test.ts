// A proxy for callers who act for a member: it says what the account is wanted for, the account service's word decides, and a
// lease that was had for one use is not good for another.
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { notFound, StatusError } from "#libs/errors.ts";
import { AccountUse } from "#proto/deputy/account/v1/accounts.ts";
import { signToken } from "../support/stand-in-service.ts";
import { forwardRequest, type ProxyFixture, startProxyFixture } from "./proxy-fixture.ts";

let fixture: ProxyFixture;
let memberToken: string;
beforeAll(async () => {
  fixture = await startProxyFixture();
  const actor = { member_id: "bob", role: "member" };
  memberToken = await signToken({ sub: "cli_1", project_id: "proj_1", scope: "*", actor });
});
afterAll(() => fixture.stop());
beforeEach(() => fixture.reset());

const denied = new StatusError("PERMISSION_DENIED", "MEMBER_NOT_ALLOWED", "This member may not use it.");
const onlyTests = (use: AccountUse) => (use === AccountUse.TEST ? undefined : denied);
const options = (token = memberToken) => ({ token, deadlineMs: Date.now() + 10_000 });
const forward = (use?: AccountUse, token?: string) =>
  fixture.gateway.forward(forwardRequest(use === undefined ? {} : { use }), options(token));

async function streamStatus(use: AccountUse): Promise<number | undefined> {
  async function* head() {
    yield { piece: { $case: "head", value: forwardRequest({ use }) } } as const;
  }
  let status: number | undefined;
  for await (const { piece } of fixture.gateway.forwardStream(head(), options())) {
    if (piece?.$case === "head") status = piece.value.status;
  }
  return status;
}

test("asks for what the request says, a new use where it says nothing, and for none without a member", async () => {
  for (const use of [undefined, AccountUse.CHANGE, AccountUse.TEST]) await forward(use);
  expect(fixture.uses).toEqual([AccountUse.NEW, AccountUse.CHANGE, AccountUse.TEST]);
  await forward(AccountUse.TEST, fixture.token);
  await forward(AccountUse.NEW, fixture.token);
  expect(fixture.uses.slice(3)).toEqual([AccountUse.UNSPECIFIED]);
});

test("sends nothing, and asks the vault for nothing, when the member may not use the account so", async () => {
  fixture.answers = { account: {}, lease: {}, judgeUse: onlyTests };
  await expect(forward()).rejects.toMatchObject({ code: "PERMISSION_DENIED", reason: "MEMBER_NOT_ALLOWED" });
  await expect(streamStatus(AccountUse.CHANGE)).rejects.toMatchObject({ reason: "MEMBER_NOT_ALLOWED" });
  fixture.answers = { account: {}, lease: {}, judgeUse: () => notFound("account") };
  await expect(forward()).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such account." });
  expect(fixture.leases).toEqual([]);
  expect(fixture.upstream.requests).toHaveLength(0);
});

test("does not let a lease for a test be used for something new", async () => {
  fixture.answers = { account: {}, lease: {}, judgeUse: onlyTests };
  expect((await forward(AccountUse.TEST)).status).toBe(200);
  expect(await streamStatus(AccountUse.TEST)).toBe(200);
  expect(fixture.leases).toHaveLength(1);
  await expect(forward(AccountUse.NEW)).rejects.toMatchObject({ reason: "MEMBER_NOT_ALLOWED" });
  await expect(forward(AccountUse.CHANGE)).rejects.toMatchObject({ reason: "MEMBER_NOT_ALLOWED" });
  expect(fixture.upstream.requests).toHaveLength(2);
});

test("explains a refusal by its rule, and judges a use as Forward would", async () => {
  fixture.answers = { account: {}, lease: {}, judgeUse: onlyTests };
  const explain = (use: AccountUse) => fixture.gateway.explainForward(forwardRequest({ use }), options());
  expect(await explain(AccountUse.NEW)).toMatchObject({ allowed: false, rule: "MEMBER_NOT_ALLOWED" });
  expect(await explain(AccountUse.TEST)).toMatchObject({ allowed: true });
});
