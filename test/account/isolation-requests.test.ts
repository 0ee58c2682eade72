// What is not theirs: every method of AccountService with a request that is good for its project, asked from another project,
// another environment, for another user and for a member. Whatever they ask, they are told what they would be told if it were not
// there, nothing of the project changes, and the project itself goes on to do what they could not. Rows: isolation-table.ts.
import { describe, expect, test } from "vitest";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { type Outcome, outcomeOf } from "../support/outcomes.ts";
import { call, production, startAccount } from "./harness.ts";
import { type Row, rows } from "./isolation-table.ts";
import { absentThings, admin, newWorld, plainMember, type Things, tokenOf, type World } from "./isolation-things.ts";

const account = await startAccount();
const { api, operator, gateway, owner } = account;
const definition = AccountServiceDefinition;

type Method = keyof typeof rows;
interface Ask {
  readonly client?: object;
  readonly token?: string | undefined;
  readonly more?: object;
}

/** Makes the row's request with the things given. */
const ask = (method: Method, things: Things, { client = api, token, more = {} }: Ask): Promise<Outcome> =>
  outcomeOf({ definition, client }, method, { ...rows[method].request(things), ...more }, call(token));

/** The fields of a method's request that say whom it is for. */
const fieldsOf = (method: Method) => {
  const fields = definition.methods[method].requestType.fromPartial({});
  return {
    hasProject: "projectId" in fields,
    hasEnvironment: "environment" in fields,
    hasUser: "externalUserId" in fields,
  };
};

const absent = (what: string) => ({
  kind: "refused",
  code: "NOT_FOUND",
  reason: `${what.toUpperCase().replaceAll(" ", "_")}_NOT_FOUND`,
  message: `No such ${what}.`,
});

/** As if it were not there: by name where the request names something, else by an answer in which none of it is. */
async function expectNothing(method: Method, ofWhat: readonly string[], things: Things, who: Ask): Promise<void> {
  const outcome = await ask(method, things, who);
  const { names } = rows[method];
  if (names !== undefined) {
    expect(outcome).toEqual(absent(names));
    // And the same, to the letter, for what nobody has.
    expect(await ask(method, { ...absentThings(), user: things.user }, who)).toEqual(outcome);
  } else {
    expect(outcome.kind, JSON.stringify(outcome)).toBe("ok");
    const text = JSON.stringify(outcome, (_, value) => (typeof value === "bigint" ? String(value) : value));
    for (const secret of ofWhat) expect(text).not.toContain(secret);
  }
}

/** Everything that is the project's in this environment, but for its audit. */
async function rowsOf({ projectId }: World): Promise<string> {
  const tables = await owner.query<{ name: string; here: boolean }>(`
    select table_name as name, bool_or(column_name = 'environment') as here from information_schema.columns
    where table_schema = 'public' and table_name <> 'audit_entries' group by 1 having bool_or(column_name = 'project_id')`);
  const texts = [];
  for (const { name, here } of tables.toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
    const found = await owner.query<{ row: string }>(
      `select t::text as row from ${name} t where project_id = $1 ${here ? "and environment = 1" : ""} order by 1`,
      [projectId],
    );
    texts.push(name, ...found.map(({ row }) => row));
  }
  const [project] = await owner.query<{ row: string }>("select t::text as row from projects t where id = $1", [
    projectId,
  ]);
  return [...texts, project?.row].join("\n");
}

const byToken = (Object.entries(rows) as [Method, Row][]).filter(([, { only }]) => typeof only !== "object");
const lookUps = byToken.filter(([, { refusesTokens }]) => refusesTokens === undefined);

describe.each(lookUps)("%s", (method, row) => {
  const { hasProject, hasEnvironment, hasUser } = fieldsOf(method);
  const { names, members, connectTokens } = row;

  test("keeps what is another's as if it were not there, and does it for the project", async () => {
    const world = await newWorld(account);
    const { projectId, otherProjectId, token, shared, hidden, userToken } = world;
    const before = await rowsOf(world);

    if (hasProject) {
      const others = await tokenOf(account, otherProjectId);
      expect(await ask(method, shared, { token: others, more: { projectId } })).toEqual(absent("project"));
      // It would delete the other one.
      if (method !== "deleteProject") await expectNothing(method, world.secrets, shared, { token: others });
    }
    if (hasEnvironment) {
      const there = { environment: production };
      if (method !== "createConnectToken") {
        await expectNothing(method, world.ofEnvironment, shared, { token, more: there });
      }
      if (connectTokens) {
        const refused = await ask(method, shared, { token: await userToken(), more: there });
        expect(refused).toEqual(absent("environment"));
      }
    }
    if (connectTokens && method !== "listProjectApps") {
      const bobs = await userToken(undefined, "bob");
      if (hasUser)
        expect(await ask(method, shared, { token: bobs, more: { externalUserId: "ann" } })).toEqual(absent("user"));
      const ofBob = { ...shared, user: "bob" };
      if (method !== "deleteUser") await expectNothing(method, world.ofUser, ofBob, { token: bobs });
    }
    if (hasUser && names === "account") {
      const elsewhere = await ask(method, shared, { token, more: { externalUserId: "bob" } });
      expect(elsewhere).toEqual(absent("account"));
    }

    const eves = await tokenOf(account, projectId, { actor: plainMember });
    const memberRefused = { kind: "refused", code: "PERMISSION_DENIED", reason: "MEMBER_NOT_ALLOWED" };
    if (members === "view" || members === "manage") await expectNothing(method, [], hidden, { token: eves });
    if (members === "manage") expect(await ask(method, shared, { token: eves })).toMatchObject(memberRefused);
    if (members === "nothing") expect(await ask(method, shared, { token: eves })).toMatchObject(memberRefused);
    if (members === "own") {
      const outcome = await ask(method, hidden, { token: eves });
      expect(outcome.kind).toBe("ok");
      for (const secret of world.ofOwner) expect(JSON.stringify(outcome)).not.toContain(secret);
    }
    expect(withoutBobsTokens(await rowsOf(world))).toBe(withoutBobsTokens(before));

    if (members === "view" || members === "everything") {
      expect(await ask(method, shared, { token: eves })).toMatchObject({ kind: "ok" });
    }
    await expectGood(method, row, shared, await tokenOf(account, projectId, { scope: row.scope ?? "connect:proxy" }));
  });

  test("does it for an administrator", async () => {
    const { projectId, hidden } = await newWorld(account);
    await expectGood(method, row, hidden, await tokenOf(account, projectId, { actor: admin }));
  });
});

async function expectGood(method: Method, { ends }: Row, things: Things, token: string): Promise<void> {
  const outcome = await ask(method, things, { token });
  expect(outcome).toMatchObject(ends === undefined ? { kind: "ok" } : { kind: "refused", reason: ends });
}

/** The tokens with which the test asks are the project's too. */
function withoutBobsTokens(text: string): string {
  return text
    .split("\n")
    .filter((line) => !/\bcct_|\bexu_/.test(line) || /\bcon_/.test(line))
    .join("\n");
}

describe("startConnection", () => {
  test("is for connect tokens, and keeps to what is their user's and their maker's", async () => {
    const { token, shared, hidden, userToken, otherProjectId } = await newWorld(account);
    expect(await ask("startConnection", shared, { token })).toMatchObject({ reason: "CONNECT_TOKEN_REQUIRED" });
    for (const [things, from] of [
      [shared, await userToken(undefined, "bob")],
      [hidden, await userToken(plainMember)],
    ] as const) {
      await expectNothing("startConnection", [], things, { token: from });
    }
    const others = await tokenOf(account, otherProjectId);
    const request = { environment: 1, externalUserId: "ann" } as const;
    const foreign = (await api.createConnectToken(request, call(others))).token;
    await expectNothing("startConnection", [], shared, { token: foreign });
    const more = { accountId: "", oauthAppId: shared.oauthAppId };
    expect(await ask("startConnection", shared, { token: foreign, more })).toEqual(absent("OAuth app"));
    const eves = await ask("startConnection", shared, { token: await userToken(plainMember) });
    expect(eves).toMatchObject({ code: "PERMISSION_DENIED", reason: "MEMBER_NOT_ALLOWED" });
    for (const maker of [undefined, admin]) {
      expect(await ask("startConnection", hidden, { token: await userToken(maker) })).toMatchObject({ kind: "ok" });
    }
  });
});

describe("validateConnectToken", () => {
  test("says of another user's account what it says of none", async () => {
    const { shared, hidden, userToken } = await newWorld(account);
    const verdict = async (connectToken: string, accountId: string) =>
      api.validateConnectToken({ connectToken, accountId }, call());
    for (const [from, { accountId }] of [
      [await userToken(undefined, "bob"), shared],
      [await userToken(plainMember), hidden],
    ] as const) {
      expect(await verdict(from, accountId)).toMatchObject({ valid: false, error: "No such account." });
      expect(await verdict(from, accountId)).toEqual(await verdict(from, absentThings().accountId));
    }
    expect(await verdict(await userToken(), hidden.accountId)).toMatchObject({ valid: true });
  });
});

describe("for the operator", () => {
  const clientMethods = ["createApiClient", "listApiClients", "rotateApiClientSecret", "deleteApiClient"] as const;
  test.each(clientMethods)("%s keeps projects apart", async (method) => {
    const world = await newWorld(account);
    const before = await rowsOf(world);
    const there = { client: operator, more: { projectId: world.otherProjectId } };
    await expectNothing(method, world.secrets, world.shared, there);
    expect(await rowsOf(world)).toBe(before);
    const here = { client: operator, more: { projectId: world.projectId } };
    expect(await ask(method, world.shared, here)).toMatchObject({ kind: "ok" });
  });

  test("no token makes a project, and the operator's certificate alone does", async () => {
    const { token, shared } = await newWorld(account);
    for (const client of [api, gateway, operator]) {
      expect(await ask("createProject", shared, { client, token })).toMatchObject({ reason: "OPERATOR_REQUIRED" });
    }
    expect(await ask("createProject", shared, { client: operator })).toMatchObject({ kind: "ok" });
  });
});

test("completeConnection knows a connection by its state and its browser, and by nothing else", async () => {
  const { shared } = await newWorld(account);
  expect(await ask("completeConnection", absentThings(), { client: gateway })).toEqual(absent("connection"));
  const more = { browserBinding: "another-browser-that-has-not-started-it" };
  const elsewhere = await ask("completeConnection", shared, { client: gateway, more });
  expect(elsewhere).toMatchObject({ code: "PERMISSION_DENIED", reason: "BROWSER_MISMATCH" });
  expect(await ask("completeConnection", shared, { client: gateway })).toMatchObject({ kind: "ok" });
});

test("counts for a member the accounts that the member may see", async () => {
  const { projectId, token } = await newWorld(account);
  const count = async (from: string) =>
    (await api.listUsers({ environment: 1 }, call(from))).users.map(({ accountCount }) => accountCount);
  expect(await count(token)).toEqual([2]);
  expect(await count(await tokenOf(account, projectId, { actor: admin }))).toEqual([2]);
  expect(await count(await tokenOf(account, projectId, { actor: plainMember }))).toEqual([1]);
});
