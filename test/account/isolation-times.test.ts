// Absent and foreign take about the same time: an answer that is the same in words must not tell by the clock which it was. The
// requests are those of the isolation table that name something by its id.
import { describe, expect, test } from "vitest";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { outcomeOf } from "../support/outcomes.ts";
import { call, production, startAccount } from "./harness.ts";
import { rows } from "./isolation-table.ts";
import { absentThings, newWorld, plainMember, tokenOf } from "./isolation-things.ts";

const account = await startAccount();
const world = await newWorld(account);
const { projectId, otherProjectId, token, shared, hidden, userToken } = world;
const others = await tokenOf(account, otherProjectId);
const eves = await tokenOf(account, projectId, { actor: plainMember });
const bobs = await userToken(undefined, "bob");

// Beyond this the one does something that the other does not: a call to the vault, a lock, a second look.
const factor = 1.8;
const pairs = 24;
const maxRounds = 6;

const foreign = { things: shared, token: others, more: {} };
const elsewhere = { things: shared, token, more: { environment: production } };
const ofUser = { things: { ...shared, user: "bob" }, token: bobs, more: {} };
const ofMember = { things: hidden, token: eves, more: {} };

type Method = keyof typeof rows;
const projects: readonly Method[] = [
  ...(["getAccount", "updateAccount", "deleteAccount", "createAccount", "getConnection", "verifyConnection"] as const),
  ...(["getApp", "updateApp", "deleteApp", "getOauthApp", "updateOauthApp", "deleteOauthApp"] as const),
  ...(["getAppOverride", "updateAppOverride", "deleteAppOverride", "createConnectToken"] as const),
];
const accounts: readonly Method[] = ["getAccount", "deleteAccount", "getConnection"];
const cases = [
  ...projects.map((method) => [method, "of another project", foreign] as const),
  ...accounts.map((method) => [method, "of another environment", elsewhere] as const),
  ...accounts.map((method) => [method, "of another user", ofUser] as const),
  ...accounts.map((method) => [method, "of another member", ofMember] as const),
];

describe.each(cases)("%s", (method, whose, { things, token: from, more }) => {
  test(`takes as long for what is ${whose} as for what is nobody's`, async () => {
    const absent = { ...absentThings(), user: things.user };
    const measure = async (asked: typeof things) => {
      const request = { ...rows[method].request(asked), ...more };
      const start = performance.now();
      const outcome = await outcomeOf(
        { definition: AccountServiceDefinition, client: account.api },
        method,
        request,
        call(from),
      );
      expect(outcome).toMatchObject({ kind: "refused", code: "NOT_FOUND" });
      return performance.now() - start;
    };
    /** By what factor one takes longer: in turns, so that whatever the machine does besides meets both. */
    const compare = async () => {
      const times: [number[], number[]] = [[], []];
      for (let n = 0; n < pairs; n += 1) {
        for (const kind of n % 2 === 0 ? ([0, 1] as const) : ([1, 0] as const)) {
          times[kind].push(await measure(kind === 0 ? things : absent));
        }
      }
      const [foreignMs = 0, absentMs = 0] = times.map((values) => values.toSorted((a, b) => a - b)[pairs / 2]);
      return Math.max(foreignMs / absentMs, absentMs / foreignMs);
    };
    // A busy machine may spoil a round; a difference that is there would show in each.
    const rounds = [];
    do rounds.push(await compare());
    while ((rounds.at(-1) ?? 0) > factor && rounds.length < maxRounds);
    expect(Math.min(...rounds)).toBeLessThan(factor);
  });
});
