// The main job across true processes: gateway, account, vault, proxy, Postgres and a real OAuth provider, and what is left
// behind by it in databases and logs.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { runDemo } from "../../dev/demo.ts";
import { readSecret } from "../../dev/state.ts";
import { atDatabase } from "../../migrations/databases.ts";
import { findLeaks } from "../support/leaks.ts";
import { dumpDatabase } from "../support/postgres.ts";
import { connectSandbox, startTestStack } from "../support/stack.ts";

const stack = await startTestStack();
const { connection, account, proxy, call } = stack;
const environment = Environment.DEVELOPMENT;
const projectId = connection.project_id;

test("connects, forwards, refreshes, revokes and refuses, from one end to the other", async () => {
  const steps: string[] = [];
  await runDemo(connection, (line) => steps.push(line));
  expect(steps.at(-2)).toContain("ACCOUNT_REVOKED");
});

test("puts a key into the header or the query, as the app's entry says", async () => {
  const apiKey = "sandbox-key-canary-7f3a9c";
  for (const [appSlug, place] of [
    ["sandbox_header_key", "headers"],
    ["sandbox_query_key", "query"],
  ] as const) {
    const credential = { $case: "fields", value: { values: { api_key: apiKey } } } as const;
    const created = await account.createAccount(
      { projectId, environment, externalUserId: "keys", appSlug, credential },
      call(),
    );
    const answer = await proxy.forward(
      {
        projectId,
        environment,
        externalUserId: "keys",
        accountId: created.account?.id ?? "",
        method: "GET",
        url: "/x",
      },
      call(),
    );
    expect(answer.status).toBe(200);
    expect(JSON.stringify(JSON.parse(answer.body.toString())[place])).toContain("sha256:");
  }
});

test("leaves no secret in the databases or in the logs", async () => {
  const accountId = await connectSandbox(stack, "leaks");
  const request = { projectId, environment, externalUserId: "leaks", accountId, method: "GET", url: "/echo/x" };
  expect((await proxy.forward(request, call())).status).toBe(200);

  const secrets = {
    ...sandboxSecrets(),
    apiKey: "sandbox-key-canary-7f3a9c",
    clientSecret: connection.client_secret,
    oauthClientSecret: readSecret(stack.state.passwordFiles["sandbox-client"]),
    accessToken: call().token,
  };
  expect(Object.keys(secrets).filter((name) => /^(AccessToken|RefreshToken)/.test(name)).length).toBeGreaterThan(1);
  for (const database of ["deputy_account", "deputy_vault"]) {
    const { url, password } = stack.postgres;
    const dump = await dumpDatabase({ url: atDatabase(url, database), password });
    expect(dump).toContain(accountId);
    expect(findLeaks(dump, secrets), database).toEqual([]);
  }
  for (const file of readdirSync(stack.state.logs)) {
    expect(findLeaks(readFileSync(join(stack.state.logs, file), "utf8"), secrets), file).toEqual([]);
  }
});

/** Every token and code that the provider has issued in this run and still knows. */
function sandboxSecrets(): Record<string, string> {
  const found: Record<string, string> = {};
  const state = readFileSync(join(stack.state.sandbox, "sandbox-provider.json"), "utf8");
  for (const [, model = "", id = ""] of state.matchAll(
    /(AccessToken|RefreshToken|AuthorizationCode):(sandbox-token-[\w-]{20,})/g,
  )) {
    found[`${model}:${id}`] = id;
  }
  return found;
}
