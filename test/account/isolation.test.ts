// Who gets in: every method of AccountService by every kind of caller, held to the table of isolation-table.ts. What happens to
// those who do is in isolation-requests.test.ts.
import { readFileSync } from "node:fs";
import { exportJWK, importPKCS8, SignJWT } from "jose";
import { afterAll, expect, test } from "vitest";
import { tokenIssuer } from "#libs/access-tokens.ts";
import { createClient } from "#libs/rpc-client.ts";
import { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import { loadTokenKeys } from "../../services/account/token-keys.ts";
import { admission } from "../support/outcomes.ts";
import { testTls } from "../support/tls.ts";
import { call, newConnectToken, newProject, newTokenKey, startAccount } from "./harness.ts";
import { documentation, type Row, rows, type Service } from "./isolation-table.ts";
import { admin, plainMember, tokenOf } from "./isolation-things.ts";

const account = await startAccount();
const { api, gateway, operator, proxy, clock, tokenKeys, tokenKey, now } = account;
const acme = await newProject(account);
const definition = AccountServiceDefinition;

const services: readonly Service[] = ["account", "gateway", "operator", "proxy", "vault"];
const address = `127.0.0.1:${account.server.internalPort}`;
const connect = async (service: Service) => {
  const client = createClient(definition, { address, tls: await testTls(service), service: "account" });
  afterAll(() => client.close());
  return client;
};
const clients = { gateway, operator, proxy, account: await connect("account"), vault: await connect("vault") };

const scopes = [
  ...["connect:accounts:read", "connect:accounts:write", "connect:users:read", "connect:users:write"],
  ...["connect:tokens:create", "connect:projects:read", "connect:projects:write", "connect:audit:read"],
  ...["connect:proxy", "credentials:reveal"],
];
const table = Object.entries(rows) as [keyof typeof rows, Row][];
const denied = (reason: string) => `PERMISSION_DENIED ${reason}`;
const enter = (method: string, client: object, token?: string) => admission({ definition, client }, method, token);

/** Asks for each method, a few at a time, and gives what is not as the table says. */
async function differences(
  expected: (row: Row, method: string) => string,
  ask: (method: string, row: Row) => Promise<string>,
): Promise<string[]> {
  const asked = table.map(async ([method, row]) => {
    const [want, got] = [expected(row, method), await ask(method, row)];
    return want === got ? [] : [`${method}: ${got} instead of ${want}`];
  });
  return (await Promise.all(asked)).flat();
}

test("has a row for every method, and no other", () => {
  expect(Object.keys(rows).sort()).toEqual(Object.keys(definition.methods).sort());
});

test("is what the documentation says", () => {
  expect(readFileSync("docs/operating.md", "utf8"), documentation()).toContain(documentation());
});

test.each(scopes)("lets a token with %s alone call what is for it, and nothing else", async (scope) => {
  const token = await tokenOf(account, acme.projectId, { scope });
  const expected = ({ only, scope: needed }: Row) => {
    if (only === "anybody") return "admitted";
    if (only !== undefined) return denied("CALLER_NOT_ALLOWED");
    return needed === scope ? "admitted" : denied("SCOPE_MISSING");
  };
  expect(await differences(expected, (method) => enter(method, api, token))).toEqual([]);
  // The gateway passes tokens on and has no right of its own but for the redirect.
  const throughGateway = (row: Row) =>
    typeof row.only === "object" && row.only.includes("gateway") ? "admitted" : expected(row);
  expect(await differences(throughGateway, (method) => enter(method, gateway, token))).toEqual([]);
});

test.each(["nobody", ...services] as const)("keeps %s without a token to what it may", async (service) => {
  const expected = ({ only, also = [] }: Row, method: string) => {
    const byItself = only === "anybody" ? ["nobody", "gateway", "operator"] : (only ?? ["operator"]);
    if ([...byItself, ...also].includes(service)) return "admitted";
    const mayBring = only === undefined && (["nobody", "gateway"].includes(service) || isUseByProxy(method, service));
    return mayBring ? "UNAUTHENTICATED TOKEN_REQUIRED" : denied("CALLER_NOT_ALLOWED");
  };
  const client = service === "nobody" ? api : clients[service];
  expect(await differences(expected, (method) => enter(method, client))).toEqual([]);
});

test.each(services)("lets the certificate of %s do no more with a token than its row says", async (service) => {
  const token = await tokenOf(account, acme.projectId);
  const expected = ({ only, also = [] }: Row, method: string) => {
    if (only === "anybody" ? ["gateway", "operator"].includes(service) : only?.includes(service)) return "admitted";
    if (also.includes(service) || isUseByProxy(method, service)) return "admitted";
    return only === undefined && ["gateway", "operator"].includes(service) ? "admitted" : denied("CALLER_NOT_ALLOWED");
  };
  expect(await differences(expected, (method) => enter(method, clients[service], token))).toEqual([]);
});

/** A proxy looks at the account that its caller wants to use. */
function isUseByProxy(method: string, service: string): boolean {
  return method === "getAccount" && service === "proxy";
}

test("keeps a connect token to what its user's browser may do", async () => {
  const token = await newConnectToken(account, acme.token);
  const { accessToken } = await api.issueAccessToken({ grant: { $case: "connectToken", value: token } }, call());
  const expected = ({ only, connectTokens }: Row) => {
    if (only === "anybody" || connectTokens) return "admitted";
    return denied(only === undefined ? "CONNECT_TOKEN_NOT_ALLOWED" : "CALLER_NOT_ALLOWED");
  };
  for (const text of [token, accessToken]) {
    expect(await differences(expected, (method) => enter(method, api, text))).toEqual([]);
  }
});

test("keeps a member from what is for the project and its administrators, whoever the member's word comes through", async () => {
  const expected = ({ only, members, refusesTokens }: Row) => {
    if (only === "anybody") return "admitted";
    if (only !== undefined) return denied("CALLER_NOT_ALLOWED");
    return members === "nothing" && refusesTokens === undefined ? denied("MEMBER_NOT_ALLOWED") : "admitted";
  };
  const [eves, adas] = [
    await tokenOf(account, acme.projectId, { actor: plainMember }),
    await tokenOf(account, acme.projectId, { actor: admin }),
  ];
  expect(await differences(expected, (method) => enter(method, api, eves))).toEqual([]);
  const forOperator = (row: Row) =>
    typeof row.only === "object" ? (row.only.includes("operator") ? "admitted" : expected(row)) : expected(row);
  expect(await differences(forOperator, (method) => enter(method, operator, eves))).toEqual([]);
  const forAdmin = (row: Row) => (expected(row) === denied("MEMBER_NOT_ALLOWED") ? "admitted" : expected(row));
  expect(await differences(forAdmin, (method) => enter(method, api, adas))).toEqual([]);
});

test("refuses a bad token for every method, whether one is needed or not, and whoever brings it", async () => {
  const { privateKey, keyId } = await keyOf(tokenKey);
  const sign = (change: { iss?: string; aud?: string; kid?: string }, key = privateKey) =>
    new SignJWT({ project_id: acme.projectId, scope: "*" })
      .setProtectedHeader({ alg: "EdDSA", kid: change.kid ?? keyId })
      .setSubject(acme.clientId)
      .setIssuer(change.iss ?? tokenIssuer)
      .setAudience(change.aud ?? tokenIssuer)
      .setExpirationTime("1h")
      .sign(key);
  // The same maker with nothing changed: the tokens below are bad for what is said of them alone.
  expect(await enter("getProject", api, await sign({}))).toBe("admitted");
  const stranger = await keyOf(newTokenKey());
  const bad = {
    "another audience": await sign({ aud: "another-service" }),
    "another issuer": await sign({ iss: "another-issuer" }),
    "another key": await sign({ kid: stranger.keyId }, stranger.privateKey),
    "another key under the name of ours": await sign({}, stranger.privateKey),
    nonsense: "nonsense",
  };
  for (const [why, token] of Object.entries(bad)) {
    const refused = () => "UNAUTHENTICATED TOKEN_INVALID";
    expect(await differences(refused, (method) => enter(method, api, token)), why).toEqual([]);
    expect(await differences(refused, (method) => enter(method, operator, token)), why).toEqual([]);
  }
  const connectToken = await newConnectToken(account, acme.token);
  clock.aheadMs = 4 * 3_600_000 + 1_000;
  try {
    const expired = await differences(
      () => "UNAUTHENTICATED TOKEN_EXPIRED",
      (method) => enter(method, api, acme.token),
    );
    expect(expired).toEqual([]);
    const ended = () => "UNAUTHENTICATED CONNECT_TOKEN_INVALID";
    expect(await differences(ended, (method) => enter(method, api, connectToken))).toEqual([]);
  } finally {
    clock.aheadMs = 0;
  }
});

test("does not speak to anybody without a certificate where services call", async () => {
  const { ca, trustDomain } = await testTls("operator");
  const client = createClient(definition, { address, tls: { ca, trustDomain }, service: "account" });
  const token = await tokenOf({ tokenKeys, now }, acme.projectId);
  const refused = await differences(
    () => "UNAVAILABLE UNAVAILABLE",
    (method) => enter(method, client, token),
  );
  client.close();
  expect(refused).toEqual([]);
});

async function keyOf(pem: string) {
  const { published } = await loadTokenKeys(pem);
  const privateKey = await importPKCS8(pem, "EdDSA", { extractable: true });
  expect((await exportJWK(privateKey)).x).toBe(published[0]?.x);
  return { privateKey, keyId: published[0]?.keyId ?? "" };
}
