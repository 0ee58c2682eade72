// Where secrets end up. The main job and every failure that can be provoked run over true processes at log level debug, with
// a provider and upstreams that say back what they were sent; then every place that could keep a secret is searched for all
// secrets of the run in all their forms, and so is every error that a client was told. There are no metrics or traces yet;
// when there are, they belong into places.ts. What is compressed or encrypted cannot be searched.
import { spawn } from "node:child_process";
import { appendFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { apiKey, failureOf, show, startCanaryStack, until } from "../support/canary-stack.ts";
import { findLeaksIn, placesOf } from "../support/places.ts";
import type { Fault } from "../support/provider-shim.ts";
import { openStackDatabase } from "../support/stack.ts";

const canaries = await startCanaryStack();
const { stack, project, shim, db, secrets, told, secret, connect, forward, endToken, createKeyAccount } = canaries;
const { account, call, connection, state } = stack;

test("the main job works, over gRPC and over REST", async () => {
  await canaries.openLink("somebody");
  const accountId = await connect("main-job");
  await endToken(accountId);
  expect(await forward("main-job", accountId)).toMatchObject({ status: 200, refreshed: true });
  expect((await forwardOverRest("main-job", accountId)).status).toBe(200);
  for (const appSlug of ["sandbox_header_key", "sandbox_query_key"]) {
    expect((await forward("keys", await createKeyAccount(appSlug))).status).toBe(200);
  }
  const target = { $case: "externalUserId", value: "main-job" } as const;
  expect(await Array.fromAsync(account.revokeAllAccounts({ ...project, target }, call()))).toHaveLength(1);
});

const clientSecret = secret("a wrong client secret", `${connection.client_secret}-wrong`);
const badToken = secret("an access token with another signature", `${call().token.slice(0, -12)}canaryAAAAAA`);
const badConnectToken = secret("a connect token that was never made", "ctok_canary0123456789abcdef0123456789");
const misfit = secret("a key that fits no pattern", "canary-key-that-fits-no-pattern");
const inline = secret("an inline credential", "sandbox-key-canary-inline-55aa");
const password = secret("a password in a URL", "canary-password-in-a-url");

test("callers are refused for what is wrong with their tokens and fields, over gRPC", async () => {
  const accountId = await createKeyAccount("sandbox_header_key");
  const grant = { $case: "clientCredentials", value: { clientId: connection.client_id, clientSecret } } as const;
  const oauthApp = { ...project, appSlug: "sandbox_header_key", name: "x", clientId: "x", clientSecret };
  const inlineCredential = { appSlug: "sandbox_header_key", fields: { api_key: inline } };
  const as = (token: string) => ({ ...call(), token });
  const create = (values: Record<string, string>) => {
    const credential = { $case: "fields", value: { values } } as const;
    return account.createAccount(
      { ...project, externalUserId: "keys", appSlug: "sandbox_header_key", credential },
      call(),
    );
  };
  const send = (more: object, along = call()) =>
    stack.proxy.forward({ ...project, externalUserId: "keys", accountId, method: "GET", url: "/x", ...more }, along);
  const refusals: Readonly<Record<string, () => Promise<unknown>>> = {
    "access token": () => account.listAccounts(project, as(badToken)),
    "access token at the proxy": () => send({}, as(badToken)),
    "connect token": () => account.listAccounts(project, as(badConnectToken)),
    "client secret": () => account.issueAccessToken({ grant }, call()),
    "OAuth client of an app without OAuth": () => account.createOauthApp(oauthApp, call()),
    "field against its pattern": () => create({ api_key: misfit }),
    "unknown field": () => create({ [misfit]: apiKey }),
    "field too long": () => create({ api_key: apiKey.repeat(50) }),
    "inline credential beside an account": () => send({ inlineCredential }),
    "inline credential in place of a name": () =>
      send({ accountId: "", inlineCredential: { appSlug: "sandbox_header_key", fields: { [inline]: inline } } }),
    "header that is injected": () => send({ headers: [{ name: "x-api-key", value: apiKey }] }),
    "header of two lines": () => send({ headers: [{ name: "x-y", value: `${apiKey}\r\n` }] }),
    "URL with a password": () => send({ url: `https://u:${password}@localhost/` }),
    "other host": () => send({ url: `https://example.com/?k=${password}` }),
    "account by a secret": () => send({ accountId: password }),
  };
  for (const [what, ask] of Object.entries(refusals)) {
    const error = await failureOf(ask());
    expect(error, what).toBeInstanceOf(Error);
    told.push([what, show(error)]);
  }
});

test("callers are refused for what is wrong with their tokens and fields, over REST", async () => {
  const headers = { ...canaries.restHeaders(), "content-type": "application/json" };
  const inProject = canaries.restUrl.slice(connection.gateway_url.length);
  const post = (body: string) => ({ method: "POST", headers, body });
  const creating = { app_slug: "sandbox_header_key", connect_token: badConnectToken };
  const grant = { grant_type: "client_credentials", client_id: connection.client_id, client_secret: clientSecret };
  const target = Buffer.from(`https://u:${password}@x/`).toString("base64url");
  const refusals: readonly (readonly [path: string, init: RequestInit])[] = [
    [`${inProject}/accounts`, post(`{"cfmap_json": "${misfit}`)],
    [`${inProject}/accounts`, post(JSON.stringify({ ...creating, cfmap_json: misfit }))],
    [`${inProject}/accounts`, post(JSON.stringify({ ...creating, cfmap_json: `{"api_key":"${misfit}"}` }))],
    [`${inProject}/accounts/${badConnectToken}`, { headers }],
    [`${inProject}/accounts`, { headers: { ...headers, authorization: `Bearer ${badToken}` } }],
    [`${inProject}/proxy/${target}?external_user_id=keys`, { headers }],
    ["/v1/oauth/token", post(JSON.stringify(grant))],
    ["/v1/oauth/token", post(`{"client_secret":"${clientSecret}",}`)],
    [`/v1/connect/tokens/${badConnectToken}/validate`, {}],
    [`/oauth/callback?code=${secret("a foreign code", "canary-code-of-nobody")}&state=${password}`, {}],
    [`/_static/connect.html?token=${badConnectToken}&app=sandbox`, {}],
  ];
  for (const [path, init] of refusals) {
    const { status } = await canaries.keepAnswer(path, await fetch(connection.gateway_url + path, init));
    // The validation of a connect token says no with a 200.
    expect(status, path).toBeGreaterThanOrEqual(path.endsWith("/validate") ? 200 : 400);
    // What was asked is the caller's; what was told is not.
    told.splice(-1, 1, ["a refusal over REST", told.at(-1)?.[1] ?? ""]);
  }
  await canaries.keepAnswer("health", await fetch(`${connection.gateway_url}/healthz`));
});

/** Answers that say back all that was asked, or nearly a grant. */
const echoes: Readonly<Record<string, (asked: string) => Fault>> = {
  "a 500": (asked) => ({ status: 500, body: asked, headers: { "x-echo": encodeURIComponent(asked) } }),
  "an error that is the token": (asked) => ({ status: 400, body: JSON.stringify({ error: tokenIn(asked) }) }),
  "an error with a description": (asked) => ({
    status: 429,
    body: JSON.stringify({ error: "slow_down", error_description: asked, error_uri: asked }),
    headers: { "retry-after": tokenIn(asked) },
  }),
  "a redirect": (asked) => ({ status: 302, body: "", headers: { location: `https://localhost/?${tokenIn(asked)}` } }),
  "half a JSON": (asked) => ({ status: 200, body: `{"access_token": "${tokenIn(asked)}` }),
  "no token": (asked) => ({ status: 200, body: JSON.stringify({ refresh_token: tokenIn(asked), access_token: 7 }) }),
  "more than it announced": (asked) => ({ status: 200, body: `{}${asked}`, headers: { "content-length": "2" } }),
  "a head without end": (asked) => ({ status: 200, body: "{}", headers: { "x-echo": tokenIn(asked).repeat(900) } }),
  "nothing but an end": () => "break",
  "a refused client": (asked) => ({
    status: 401,
    body: JSON.stringify({ error: "invalid_client", error_description: asked }),
    headers: { "www-authenticate": `Basic realm="${tokenIn(asked)}"` },
  }),
};

test.each(Object.entries(echoes))("a token endpoint answers with %s", async (what, answer) => {
  const accountId = await connect(what);
  shim.misbehave((path, asked) => (path === "/token" ? answer(asked) : undefined));
  await endToken(accountId);
  const before = shim.requests.length;
  const failed = await failureOf(forward(what, accountId));
  expect(shim.requests.slice(before)).toContain("/token");
  expect(failed).toBeInstanceOf(Error);
  told.push([`refresh, ${what}`, show([failed, await failureOf(refresh(accountId))])]);
  await canaries.openLink(`code exchange, ${what}`);
  await db.query("update oauth_clients set probe_time = null, rejections = 0");
});

const upstreamEchoes = ["a 500", "more than it announced", "a head without end", "nothing but an end"];

test.each(upstreamEchoes)("an upstream, the identity page and the revocation endpoint answer with %s", async (what) => {
  const user = `upstream ${what}`;
  const [accountId, keyAccount] = [await connect(user), await createKeyAccount("sandbox_query_key")];
  shim.misbehave((path, asked) => (path === "/token" ? undefined : echoes[what]?.(asked)));
  // An answer is the upstream's word to the caller; an error is ours.
  const attempts = [forward(user, accountId), forward("keys", keyAccount)].map(failureOf);
  told.push([user, show(await Promise.all(attempts))]);
  const answer = await forwardOverRest(user, accountId);
  if (answer.status !== 500) await canaries.keepAnswer(user, answer);
  await canaries.openLink(`identity, ${what}`);
  const before = shim.requests.length;
  await account.deleteAccount({ ...project, accountId }, call());
  await until(() => shim.requests.slice(before).includes("/token/revocation"));
});

test("a vault is killed between the spool and the commit, and the next one goes on", async () => {
  const accountId = await connect("spool");
  // On a slow machine any other account's refresh could be the one that is spooled: none is due or may begin, and what is
  // under way in the vault that is about to stop changes nothing of that.
  await db.query(
    `update credentials set next_refresh_time = null, intent_id = null, intent_by = null, intent_time = null,
    retry_time = now() + interval '1 hour' where account_id <> $1`,
    [accountId],
  );
  await canaries.restart("vault", { DEPUTY_TEST_CRASH_POINT: "spooled" });
  const { process: killed } = canaries.running.vault;
  await endToken(accountId);
  const holder = await openStackDatabase(stack, "deputy_vault");
  const intended = `select from credentials where account_id = '${accountId}' and intent_id is not null`;
  const hold = `begin; select from credentials where account_id = '${accountId}' for update`;
  shim.misbehave(async (path) => {
    // Other accounts' refreshes are tried again meanwhile; this one's has begun when it has an intent.
    if (path === "/token" && (await db.query(intended)).length > 0) await holder.query(hold);
    return undefined;
  });
  await until(async () => {
    const failed = await failureOf(refresh(accountId));
    told.push(["killed", show(failed)]);
    return killed.signalCode === "SIGKILL";
  });
  shim.misbehave(() => undefined);
  expect(readdirSync(state.spool)).toHaveLength(1);
  await canaries.collectSecrets();
  const spooled = (await placesOf(stack)).filter(([name]) => name.startsWith("spool/"));
  expect(spooled).toHaveLength(1);
  expect(findLeaksIn(spooled, secrets)).toEqual([]);
  await db.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deputy-vault'");
  await holder.end();
  await canaries.restart("vault");
  expect(readdirSync(state.spool)).toEqual([]);
  const rows = await db.query("select generation from credentials where account_id = $1", [accountId]);
  expect(rows).toEqual([{ generation: 2n }]);
});

test("a statement fails that nobody expected to", async () => {
  const [accountId, other] = [await connect("unexpected"), await connect("expected")];
  // The proxy has to find the restarted vault first; the account's own lease must not be in its hands.
  await until(() =>
    forward("expected", other).then(
      () => true,
      () => false,
    ),
  );
  await endToken(accountId);
  await db.query("alter table credentials rename column last_intent_id to gone");
  const failed = await failureOf(forward("unexpected", accountId));
  await db.query("alter table credentials rename column gone to last_intent_id");
  expect(failed).toMatchObject({ code: "INTERNAL" });
  told.push(["unexpected", show(failed)]);
});

test("the vault is sealed, for want of a keyring and by a broken one", async () => {
  const accountId = await createKeyAccount("sandbox_header_key");
  const broken = join(state.directory, "broken-keyring.json");
  writeFileSync(broken, readFileSync(state.keyringFile, "utf8").slice(0, -20), { mode: 0o600 });
  for (const file of [join(state.directory, "no-keyring.json"), broken]) {
    await canaries.restart("vault", { DEPUTY_KEYRING_FILE: file });
    const sealed = await until(async () => {
      const failed = await failureOf(createKeyAccount("sandbox_header_key"));
      return show(failed).includes("SEALED") && failed;
    });
    told.push([`sealed with ${file}`, show([sealed, await failureOf(forward("keys", accountId))])]);
  }
});

test("and no secret is anywhere but where it belongs", { timeout: 60_000 }, async ({ annotate }) => {
  await canaries.collectSecrets();
  for (const kind of ["token sandbox-token-", "connect token of", "data key", "KEK", "private key of", "password of"]) {
    expect(Object.keys(secrets).filter((name) => name.startsWith(kind)).length, kind).toBeGreaterThan(0);
  }
  const places = [...(await placesOf(stack)), ...told];
  const startMs = performance.now();
  expect(findLeaksIn(places, secrets)).toEqual([]);
  const bytes = places.reduce((sum, [, content]) => sum + content.length, 0);
  const found = `${Object.keys(secrets).length} secrets sought in ${places.length} places of ${bytes} bytes`;
  await annotate(`${found} in ${(performance.now() - startMs).toFixed(0)} ms; ${told.length} errors`);
});

test("while the same search finds what is planted in each kind of place", { timeout: 60_000 }, async () => {
  const planted = { planted: "canary-planted-in-each-place-90d1" };
  appendFileSync(canaries.running.vault.logFile, `{"msg":"${Buffer.from(planted.planted).toString("base64")}"}\n`);
  writeFileSync(join(state.spool, "x.sealed"), planted.planted);
  const accounts = await openStackDatabase(stack, "deputy_account");
  for (const database of [db, accounts]) {
    await database.query(`create table leaked as select '${planted.planted}' as value`);
  }
  const idle = ["-e", "setInterval(() => {}, 1000)"];
  const leaking = [
    spawn(process.execPath, [...idle, state.directory, planted.planted]),
    spawn(process.execPath, idle, { env: { PLACE: state.directory, LEAK: planted.planted } }),
  ];
  const found = findLeaksIn(await placesOf(stack), planted);
  for (const child of leaking) child.kill();
  for (const database of [db, accounts]) await database.query("drop table leaked");
  const processes = leaking.map(({ pid }) => `process ${pid}:`);
  const files = ["logs/", "spool/x.sealed", "postgres/data/base/", "postgres/data/pg_wal/"];
  for (const place of ["rows of account", "rows of vault", ...files, ...processes]) {
    expect(
      found.filter((leak) => leak.startsWith(place)),
      place,
    ).not.toEqual([]);
  }
  // What was deleted is in no row any more, and in the database's log still.
  const left = findLeaksIn(await placesOf(stack), planted);
  expect(left.filter((leak) => leak.startsWith("rows"))).toEqual([]);
  expect(left.filter((leak) => leak.startsWith("postgres/data/pg_wal/"))).not.toEqual([]);
  await accounts.end();
});

/** The longest word of a request: its token. */
function tokenIn(asked: string): string {
  return (asked.match(/[\w-]+/g) ?? []).reduce((longest, word) => (word.length > longest.length ? word : longest), "");
}

function refresh(accountId: string) {
  const soon = { deadlineMs: Date.now() + 10_000 };
  return canaries.vault.refreshCredential({ ...project, accountId, generation: 0n }, soon);
}

function forwardOverRest(externalUserId: string, accountId: string): Promise<Response> {
  const target = Buffer.from(`${shim.url}/api/echo/x`).toString("base64url");
  const query = new URLSearchParams({ external_user_id: externalUserId, account_id: accountId });
  return fetch(`${canaries.restUrl}/proxy/${target}?${query}`, { headers: canaries.restHeaders() });
}
